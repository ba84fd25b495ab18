//! Links that are lost, host managers that are killed, VMs that die: no frame that a living VM maps is
//! ever given back.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use super::*;

/// A VM as it is: what it maps, whatever the host manager knows of that.
struct Vm {
    seed: u64,
    pool: File,
    id: PoolId,
    reach: Reach,
    maps: Vec<(FrameId, u8)>,
    wanted: BTreeMap<Gfn, u8>,
}

/// A host manager's index, and three VMs.
struct World {
    index: ShareIndex,
    vms: BTreeMap<VmId, Vm>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            index: ShareIndex::new(Box::new(KernelSource)),
            vms: BTreeMap::new(),
        };
        for vm in [A, B, C] {
            world.join(vm);
        }
        world
    }

    fn pool(&self, vm: VmId) -> File {
        File::from(self.index.pool(vm).unwrap().reader().unwrap())
    }

    fn join(&mut self, vm: VmId) {
        let seed = self.index.join(vm, Pages(64), Some("g"), BUDGET).unwrap();
        let new = Vm {
            seed,
            pool: self.pool(vm),
            id: self.index.pool_id(vm).unwrap(),
            reach: Reach::Open,
            maps: Vec::new(),
            wanted: BTreeMap::new(),
        };
        self.vms.insert(vm, new);
    }

    /// What was lent to a VM that hears it is mapped.
    fn take(&mut self, vm: VmId, frame: FrameId, fill: u8) {
        self.vms.get_mut(&vm).unwrap().maps.push((frame, fill));
    }

    fn offer(&mut self, vm: VmId, gfn: u32, fill: u8) {
        let key = key_of(&page(fill), self.vms[&vm].seed);
        let answer = self.index.offer(vm, &[(Gfn(gfn), key)], T0);
        for gfn in answer.wants {
            self.vms.get_mut(&vm).unwrap().wanted.insert(gfn, fill);
        }
        for (_, frame) in answer.candidates {
            self.take(vm, frame, fill);
        }
    }

    fn content(&mut self, vm: VmId) {
        let Some((gfn, fill)) = self.vms.get_mut(&vm).unwrap().wanted.pop_first() else {
            return;
        };
        let (answer, failed) = self.index.content(vm, [(gfn, &page(fill))], ROOM);
        assert!(failed.is_none());
        for lent in answer.lent {
            self.take(lent.vm, lent.frame, fill);
        }
    }

    fn release(&mut self, vm: VmId) {
        if let Some((frame, _)) = self.vms.get_mut(&vm).unwrap().maps.pop() {
            let (_, result) = self.index.release(vm, &[frame]);
            assert_eq!(result, Ok(()));
        }
    }

    fn detach(&mut self, vm: VmId) {
        self.index.set_reach(vm, Reach::Detached);
        let known = self.vms.get_mut(&vm).unwrap();
        known.reach = Reach::Detached;
        known.wanted.clear();
    }

    /// Joins again; claims all, or is cut off in between. `lost`: maps one less by then.
    fn rejoin(&mut self, vm: VmId, lost: bool, cut_off: bool) {
        let known = self.vms.get_mut(&vm).unwrap();
        if lost {
            known.maps.pop();
        }
        let handed = OwnedFd::from(known.pool.try_clone().unwrap());
        let rejoined = self.index.rejoin(vm, Some(&handed), BUDGET).unwrap();
        assert!(rejoined.adopted);
        known.seed = rejoined.seed;
        known.reach = Reach::Open;
        let frames: Vec<FrameId> = known.maps.iter().map(|&(frame, _)| frame).collect();
        for part in frames.chunks(3) {
            self.index.claim(vm, part).unwrap();
        }
        self.index.audit();
        if cut_off {
            return self.detach(vm);
        }
        // What it loses after it has claimed it is released as ever.
        self.release(vm);
        self.index.end_claims(vm).unwrap();
    }

    fn die(&mut self, vm: VmId) {
        self.index.leave(vm);
        self.join(vm);
    }

    /// The host manager is killed; the next one has its record.
    fn restart(&mut self) {
        self.index = ShareIndex::new(Box::new(KernelSource));
        for (&vm, known) in &mut self.vms {
            self.index
                .expect(vm, Pages(64), Some("g"), known.id)
                .unwrap();
            known.reach = Reach::Detached;
            known.wanted.clear();
        }
    }

    fn check(&mut self) {
        self.index.audit();
        self.index.read_adopted(2);
        self.index.audit();
        for (vm, known) in &self.vms {
            for &(frame, fill) in &known.maps {
                let mut seen = page(!fill);
                known.pool.read_exact_at(&mut seen, frame.offset()).unwrap();
                assert_eq!(seen, page(fill), "{vm:?} maps {frame:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_frame_goes_that_a_living_vm_maps(
        steps in prop::collection::vec((0..14_u8, 1..4_u32, 0..12_u32, 0..5_u8), 0..200)
    ) {
        let mut world = World::new();
        for (kind, vm, gfn, fill) in steps {
            let vm = VmId(vm);
            let open = world.vms[&vm].reach == Reach::Open;
            match kind {
                0..=3 if open => world.offer(vm, gfn, fill),
                4..=6 if open => world.content(vm),
                7 if open => world.release(vm),
                8 => world.detach(vm),
                9 | 10 => world.rejoin(vm, gfn < 4, fill == 0),
                11 => world.rejoin(vm, false, false),
                12 => world.die(vm),
                13 if gfn < 6 => world.restart(),
                _ => {}
            }
            world.check();
        }
        // Once all have claimed, nothing is held that nobody maps.
        for vm in [A, B, C] {
            world.rejoin(vm, false, false);
        }
        world.check();
        let maps: usize = world.vms.values().map(|vm| vm.maps.len()).sum();
        prop_assert_eq!(world.index.references(), maps as u64);
        let mut frames: Vec<(u64, FrameId)> = Vec::new();
        let mut blocks = BTreeMap::new();
        for known in world.vms.values() {
            frames.extend(known.maps.iter().map(|&(frame, _)| (known.id.inode, frame)));
            let file = rustix::fs::fstat(&known.pool).unwrap();
            blocks.insert(file.st_ino, file.st_blocks);
        }
        frames.sort_unstable();
        frames.dedup();
        prop_assert_eq!(world.index.frames(), frames.len() as u64);
        prop_assert_eq!(blocks.values().sum::<i64>(), 8 * i64::try_from(frames.len()).unwrap());
    }
}
