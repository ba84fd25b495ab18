//! Bytes read as a program. Behind their end all of them are zero, so that every input is one.

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, fewer at the end.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `end`, of one byte.
    pub fn below(&mut self, end: u8) -> u8 {
        self.u8() % end
    }

    /// One of some values, of which there are fewer than 256.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.u8()) % of.len()]
    }

    /// A number as an attacker chooses it: small, around `edge`, a power of two less one, or any.
    pub fn number(&mut self, edge: u64) -> u64 {
        match self.below(8) {
            0 | 1 => self.u8().into(),
            2 => edge,
            3 => edge.wrapping_add(1),
            4 => edge.wrapping_sub(1),
            5 => u64::MAX >> (self.u8() % 64),
            6 => self.u64() % edge.max(1),
            _ => self.u64(),
        }
    }
}
