//! Guests of a few instructions, as ELF files made by hand.

use tidemark_guest_protocol::{NOTE_NAME, NOTE_TYPE_RING3};

/// Where the code is linked.
pub const START: u64 = 0x10_0000;

/// x86-64 instructions, appended one by one.
#[derive(Default, Clone)]
pub struct Code(pub Vec<u8>);

impl Code {
    fn bytes(mut self, bytes: &[u8]) -> Code {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov al, value; mov dx, port; out dx, al` for each byte of `text`, to the serial port.
    pub fn print(self, text: &str) -> Code {
        let code = self.bytes(&[0x66, 0xba]).bytes(&0x3f8u16.to_le_bytes());
        text.bytes()
            .fold(code, |code, byte| code.bytes(&[0xb0, byte, 0xee]))
    }

    /// `mov eax, value; mov dx, port; out dx, eax`.
    pub fn out(self, port: u16, value: u32) -> Code {
        self.bytes(&[0xb8])
            .bytes(&value.to_le_bytes())
            .bytes(&[0x66, 0xba])
            .bytes(&port.to_le_bytes())
            .bytes(&[0xef])
    }

    /// Prints the string at `rdi` (the command line) with `rep outsb`.
    pub fn print_cmdline(self) -> Code {
        // mov rsi, rdi; xor eax, eax; mov rcx, -1; repne scasb; not rcx; dec rcx;
        // mov dx, 0x3f8; rep outsb
        self.bytes(&[
            0x48, 0x89, 0xfe, 0x31, 0xc0, 0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff,
        ])
        .bytes(&[0xf2, 0xae, 0x48, 0xf7, 0xd1, 0x48, 0xff, 0xc9])
        .bytes(&[0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e])
    }

    /// `lock inc dword [address]; jmp` back to it.
    pub fn count_forever(self, address: u32) -> Code {
        self.bytes(&[0xf0, 0xff, 0x04, 0x25])
            .bytes(&address.to_le_bytes())
            .bytes(&[0xeb, 0xf6])
    }

    /// `jmp` back to the start.
    pub fn start_over(self) -> Code {
        let back = -(self.0.len() as i32 + 5);
        self.bytes(&[0xe9]).bytes(&back.to_le_bytes())
    }

    /// `hlt`.
    pub fn halt(self) -> Code {
        self.bytes(&[0xf4])
    }

    /// `ud2`.
    pub fn undefined(self) -> Code {
        self.bytes(&[0x0f, 0x0b])
    }

    /// `mov byte [address], 1`.
    pub fn store(self, address: u32) -> Code {
        self.bytes(&[0xc6, 0x04, 0x25])
            .bytes(&address.to_le_bytes())
            .bytes(&[1])
    }

    /// `mov eax, [address]; mov dx, 0xf4; out dx, eax`: ends with what it read there.
    pub fn exit_with(self, address: u32) -> Code {
        self.bytes(&[0xb8])
            .bytes(&address.to_le_bytes())
            .bytes(&[0x8b, 0x00, 0x66, 0xba, 0xf4, 0x00, 0xef])
    }

    /// An instruction that needs SSE: `xorps xmm0, xmm0`.
    pub fn sse(self) -> Code {
        self.bytes(&[0x0f, 0x57, 0xc0])
    }

    /// Where the next instruction will be.
    pub fn here(&self) -> u64 {
        START + self.0.len() as u64
    }

    /// An ELF file with tidemark's ring-3 note.
    pub fn ring3(self) -> Vec<u8> {
        let note = note(NOTE_NAME, NOTE_TYPE_RING3, &START.to_le_bytes());
        elf(&self.0, START, &note)
    }
}

/// One note, padded.
pub fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, descriptor.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF file with one loaded segment and one note segment.
pub fn elf(code: &[u8], start: u64, note: &[u8]) -> Vec<u8> {
    let (note_at, code_at) = (64 + 2 * 56, 64 + 2 * 56 + note.len() as u64);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for value in [start, 64, 0] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let length = code.len() as u64;
    let headers = [
        (1u32, [code_at, start, start, length, length, 1]),
        (4, [note_at, 0, 0, note.len() as u64, note.len() as u64, 4]),
    ];
    for (kind, values) in headers {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&7u32.to_le_bytes());
        for value in values {
            file.extend_from_slice(&u64::to_le_bytes(value));
        }
    }
    file.extend_from_slice(note);
    file.extend_from_slice(code);
    file
}
