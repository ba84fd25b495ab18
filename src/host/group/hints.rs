//! Which page was seen with which key: the hints of one share group.
//!
//! Every page that was offered and is not shared has one, so they are dense:
//!
//! | part of a hint | bytes |
//! |---|---|
//! | its key, in the *block* of the 2 MiB that its page lies in, at the page's place there | 8 where all pages there were offered |
//! | its *slot*, the number of that place, in a hash table | 5, at a load of 7/16 to 7/8 |
//!
//! The table has no keys: it finds them in the blocks. A block also says which key a page has, so that
//! a page never has two.
//!
//! **Nothing takes long.** The table grows in small steps ([`Tables`]). A VM's blocks are *void* from
//! the moment it is forgotten, since nobody lists them any more; their slots leave the table a few
//! blocks at a time ([`Hints::sweep`]).
//!
//! **Bounds.** A VM has at most one hint a page of its memory, in as many blocks as that memory has,
//! whatever gfns it speaks of.

use std::collections::HashMap;

use crate::host::tables::Tables;
use crate::policy::types::VmId;
use crate::units::{CHUNK_PAGES, Gfn, Pages};
use crate::words::Key;

/// Void blocks whose slots leave the table in one go. Chosen: half a millisecond.
const SWEPT_BLOCKS: usize = 8;
/// Blocks of one group, at most: what the number of a slot has room for, 16 TiB.
const BLOCKS_MAX: usize = 1 << (u32::BITS - CHUNK_PAGES.ilog2());
/// What a block takes with its places in two lists, and what a slot takes in the table where that is
/// emptiest, bytes.
const BLOCK_BYTES: u64 = size_of::<Block>() as u64 + 48;
const SLOT_BYTES: u64 = 12;
/// Blocks of a VM beside those of its whole chunks: two ranges of RAM have two ends.
const BLOCKS_SPARE: u64 = 2;

/// A place in a block: the block's number times 512, and the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot(u32);

impl Slot {
    fn new(block: u32, gfn: Gfn) -> Slot {
        Slot(block * CHUNK_PAGES + gfn.0 % CHUNK_PAGES)
    }

    fn block(self) -> u32 {
        self.0 / CHUNK_PAGES
    }

    fn place(self) -> usize {
        (self.0 % CHUNK_PAGES) as usize
    }
}

/// The keys of a chunk of a VM's pages.
#[derive(Debug)]
struct Block {
    vm: VmId,
    first: Gfn,
    used: u32,
    keys: [Key; CHUNK_PAGES as usize],
}

#[derive(Debug, Default)]
struct Blocks {
    all: Vec<Option<Box<Block>>>,
    free: Vec<u32>,
}

impl Blocks {
    fn get(&self, number: u32) -> &Block {
        let block = self.all[number as usize].as_deref();
        block.expect("a block lives as long as its slots")
    }

    fn get_mut(&mut self, number: u32) -> &mut Block {
        let block = self.all[number as usize].as_deref_mut();
        block.expect("a block lives as long as its slots")
    }

    fn key(&self, slot: Slot) -> Key {
        self.get(slot.block()).keys[slot.place()]
    }

    fn add(&mut self, vm: VmId, first: Gfn) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.all.len() == BLOCKS_MAX => return None,
            None => {
                self.all.push(None);
                u32::try_from(self.all.len() - 1).expect("the bound is less")
            }
        };
        self.all[number as usize] = Some(Box::new(Block {
            vm,
            first,
            used: 0,
            keys: [Key::NONE; CHUNK_PAGES as usize],
        }));
        Some(number)
    }

    fn remove(&mut self, number: u32) {
        self.all[number as usize] = None;
        self.free.push(number);
    }
}

fn blocks_max(size: Pages) -> u64 {
    size.0 / u64::from(CHUNK_PAGES) + BLOCKS_SPARE
}

/// A VM that may have hints.
#[derive(Debug, Default)]
struct Owner {
    size: Pages,
    hints: u64,
    /// By their first gfn.
    blocks: HashMap<Gfn, u32>,
}

/// The hints of one share group.
#[derive(Debug, Default)]
pub(super) struct Hints {
    slots: Tables<Slot>,
    blocks: Blocks,
    owners: HashMap<VmId, Owner>,
    /// Blocks of VMs that were forgotten.
    void: Vec<u32>,
}

impl Hints {
    /// A VM of `size` pages may have hints from now on.
    pub fn join(&mut self, vm: VmId, size: Pages) {
        let owner = Owner {
            size,
            ..Owner::default()
        };
        self.owners.insert(vm, owner);
    }

    /// The VM may have none any more.
    pub fn leave(&mut self, vm: VmId) {
        self.forget(vm);
        self.owners.remove(&vm);
    }

    /// Bytes that a VM's hints take, at most.
    pub fn bytes_of(&self, vm: VmId) -> u64 {
        self.owners.get(&vm).map_or(0, |owner| {
            let blocks = owner.blocks.len() as u64;
            blocks * BLOCK_BYTES + owner.hints * SLOT_BYTES
        })
    }

    /// The most that can be of a VM of `size` pages.
    pub fn bytes_max(size: Pages) -> u64 {
        blocks_max(size) * BLOCK_BYTES + size.0 * SLOT_BYTES
    }

    /// Hints of a VM.
    pub fn of(&self, vm: VmId) -> u64 {
        self.owners.get(&vm).map_or(0, |owner| owner.hints)
    }

    /// All hints of a VM end.
    pub fn forget(&mut self, vm: VmId) {
        if let Some(owner) = self.owners.get_mut(&vm) {
            owner.hints = 0;
            self.void
                .extend(std::mem::take(&mut owner.blocks).into_values());
        }
    }

    /// Takes the slots of some void blocks out of the table. Whether there are more.
    pub fn sweep(&mut self) -> bool {
        let rest = self.void.len().saturating_sub(SWEPT_BLOCKS);
        for number in self.void.split_off(rest) {
            for place in 0..CHUNK_PAGES {
                let slot = Slot::new(number, Gfn(place));
                if self.blocks.key(slot) != Key::NONE {
                    self.unlink(slot);
                }
            }
            self.blocks.remove(number);
        }
        !self.void.is_empty()
    }

    /// Whether there are void blocks.
    pub fn has_void(&self) -> bool {
        !self.void.is_empty()
    }

    /// The page that was seen with `key`.
    pub fn get(&self, key: Key) -> Option<(VmId, Gfn)> {
        self.live(self.find(key)?)
    }

    /// The same, and it is a hint no more.
    pub fn take(&mut self, key: Key) -> Option<(VmId, Gfn)> {
        let slot = self.find(key)?;
        let page = self.live(slot)?;
        self.unlink(slot);
        self.clear(slot);
        Some(page)
    }

    /// A page was seen with `key`, and with no other. It is a hint if the VM may have a further one.
    pub fn put(&mut self, vm: VmId, gfn: Gfn, key: Key) {
        self.remove(vm, gfn);
        if key == Key::NONE {
            return;
        }
        let Some(slot) = self.room(vm, gfn) else {
            return;
        };
        let block = self.blocks.get_mut(slot.block());
        block.keys[slot.place()] = key;
        block.used += 1;
        let owner = self.owners.get_mut(&vm).expect("who has room is known");
        owner.hints += 1;
        if let Some(other) = self.link(slot) {
            self.clear(other);
        }
    }

    /// Ends the hint of a page, if it is one.
    fn remove(&mut self, vm: VmId, gfn: Gfn) {
        let owner = self.owners.get(&vm);
        let block = owner.and_then(|owner| owner.blocks.get(&gfn.chunk_start()));
        if let Some(slot) = block.map(|&block| Slot::new(block, gfn))
            && self.blocks.key(slot) != Key::NONE
        {
            self.unlink(slot);
            self.clear(slot);
        }
    }

    /// Where the key of a page belongs, unless its VM may have no further hint.
    fn room(&mut self, vm: VmId, gfn: Gfn) -> Option<Slot> {
        let owner = self.owners.get_mut(&vm)?;
        if owner.hints >= owner.size.0 {
            return None;
        }
        let first = gfn.chunk_start();
        let blocks = owner.blocks.len() as u64;
        let block = match owner.blocks.get(&first) {
            Some(&block) => block,
            None if blocks >= blocks_max(owner.size) => return None,
            None => {
                let block = self.blocks.add(vm, first)?;
                owner.blocks.insert(first, block);
                block
            }
        };
        Some(Slot::new(block, gfn))
    }

    /// The page of a slot, unless it is void.
    fn live(&self, slot: Slot) -> Option<(VmId, Gfn)> {
        let block = self.blocks.get(slot.block());
        let listed = self.owners.get(&block.vm)?.blocks.get(&block.first);
        let place = slot.0 % CHUNK_PAGES;
        (listed == Some(&slot.block())).then_some((block.vm, Gfn(block.first.0 + place)))
    }

    /// No key is at a slot that has left the table.
    fn clear(&mut self, slot: Slot) {
        let live = self.live(slot);
        let block = self.blocks.get_mut(slot.block());
        block.keys[slot.place()] = Key::NONE;
        block.used -= 1;
        let (first, empty) = (block.first, block.used == 0);
        // A void block is the sweep's.
        let Some((vm, _)) = live else { return };
        let owner = self.owners.get_mut(&vm).expect("a live hint has an owner");
        owner.hints -= 1;
        if empty {
            owner.blocks.remove(&first);
            self.blocks.remove(slot.block());
        }
    }

    fn find(&self, key: Key) -> Option<Slot> {
        let is = |&slot: &Slot| self.blocks.key(slot) == key;
        self.slots.find(key, is).copied()
    }

    /// Enters a slot whose key stands in its block. Returns the slot that had that key before.
    fn link(&mut self, slot: Slot) -> Option<Slot> {
        let (blocks, key) = (&self.blocks, self.blocks.key(slot));
        let is = |&other: &Slot| blocks.key(other) == key;
        self.slots
            .replace(key, slot, is, |&other| blocks.key(other))
    }

    /// Takes a slot out of the table while its key still stands in its block.
    fn unlink(&mut self, slot: Slot) {
        let (blocks, key) = (&self.blocks, self.blocks.key(slot));
        let is = |&other: &Slot| other == slot;
        let removed = self.slots.remove(key, is, |&other| blocks.key(other));
        assert!(
            removed.is_some(),
            "{slot:?} has a key and is not found by it"
        );
    }

    /// Checks every count against the blocks, and the blocks against the table.
    ///
    /// # Panics
    /// When they differ: a bug.
    pub fn audit(&self) {
        let mut all = 0;
        for (number, block) in (0..).zip(&self.blocks.all) {
            let Some(block) = block else {
                assert!(self.blocks.free.contains(&number), "block {number} is lost");
                continue;
            };
            let places = (0..CHUNK_PAGES).map(|place| Slot::new(number, Gfn(place)));
            let used: Vec<Slot> = places
                .filter(|&slot| self.blocks.key(slot) != Key::NONE)
                .collect();
            assert_eq!(block.used as usize, used.len(), "hints of block {number}");
            for &slot in &used {
                assert_eq!(self.find(self.blocks.key(slot)), Some(slot));
            }
            let listed = self.owners.get(&block.vm);
            let listed = listed.and_then(|owner| owner.blocks.get(&block.first));
            let void = self.void.contains(&number);
            assert_eq!(void, listed != Some(&number), "block {number} is void");
            all += used.len();
        }
        assert_eq!(self.slots.len(), all, "slots and keys");
        for (vm, owner) in &self.owners {
            let used = |&block: &u32| u64::from(self.blocks.get(block).used);
            let hints: u64 = owner.blocks.values().map(used).sum();
            assert_eq!(owner.hints, hints, "hints of {vm:?}");
            assert!(hints <= owner.size.0, "{vm:?} has too many");
        }
    }
}

#[cfg(test)]
mod tests;
