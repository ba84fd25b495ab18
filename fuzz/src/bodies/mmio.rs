//! The virtio-mmio transport in front of a device that checks what it is given, and in front of the
//! entropy device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark::devices::bus::BusDevice;
use tidemark::devices::idle::IdlePort;
use tidemark::devices::interrupt::NoInterrupt;
use tidemark::devices::virtio::chain::{Direction, Malformed};
use tidemark::devices::virtio::mmio::Transport;
use tidemark::devices::virtio::ring::Ring;
use tidemark::devices::virtio::{FEATURE_VERSION_1, Used, VirtioDevice, rng};
use tidemark::sys::guest_range::frames_touched;
use tidemark::sys::ram::{GuestRam, Layout};
use tidemark::units::Pages;

use super::driver::{CONFIG, DATA, Driver, VERSION_1, WRITE};
use super::input::Input;

const STEPS_MAX: usize = 64;
const QUEUE_MAX: u16 = 64;
/// A feature that the witness offers.
const FEATURE: u64 = 1 << 7;

/// A device that takes chains of each direction, one queue each.
#[derive(Default)]
struct Witness {
    active: Option<u64>,
    config: [u8; 16],
    chains: Arc<AtomicU64>,
}

impl VirtioDevice for Witness {
    fn device_id(&self) -> u32 {
        0x7fff
    }

    fn features(&self) -> u64 {
        FEATURE_VERSION_1 | FEATURE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_MAX, 16, 1]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        tidemark::devices::virtio::ring::read_config_of(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 4 {
            self.config[..4].copy_from_slice(data);
        }
    }

    fn activate(&mut self, features: u64) {
        assert_eq!(
            features & !self.features(),
            0,
            "features that were not offered"
        );
        assert_ne!(features & FEATURE_VERSION_1, 0, "a legacy driver");
        self.active = Some(features);
    }

    fn notify(&mut self, ring: &mut Ring<'_>) -> Result<Used, Malformed> {
        assert!(
            self.active.is_some(),
            "a notification of a driver that is not ready"
        );
        let directions = [Direction::Both, Direction::FromDevice, Direction::ToDevice];
        let direction = directions[ring.index()];
        let most = usize::from(self.queue_sizes()[ring.index()]);
        let mut served = 0;
        let chains = &self.chains;
        let used = ring.serve_each(direction, |chain, ram| {
            served += 1;
            assert!(!chain.buffers.is_empty() && chain.buffers.len() <= most);
            for buffer in &chain.buffers {
                assert!(direction == Direction::Both || buffer.way == direction);
                let length = u64::from(buffer.length);
                frames_touched(ram.layout(), buffer.gpa, length).expect("a buffer is RAM");
            }
            chains.fetch_add(1, Ordering::Relaxed);
            Ok(u32::from(chain.head))
        });
        assert!(
            served <= most,
            "{served} chains at once in a queue of {most}"
        );
        used
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

/// Whether a chain was served.
pub fn body(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let ram = GuestRam::new(Layout::new(Pages::mib(4))).expect("address space suffices");
    let (line, idle) = (Arc::new(NoInterrupt), Arc::new(IdlePort::default()));
    let first = input.u8();
    let size = 1 << (first >> 5).min(6);
    if first & 7 == 0 {
        let registers = rng::bus_device(ram.clone(), line, idle);
        let driver = Driver::new(&*registers, &ram, 1, size);
        return play(driver, VERSION_1, &mut input);
    }
    let device = Witness::default();
    let chains = device.chains.clone();
    let transport = Transport::new("witness", device, ram.clone(), line, idle);
    let driver = Driver::new(&transport as &dyn BusDevice, &ram, 1, size);
    let returned = play(driver, VERSION_1 | FEATURE, &mut input);
    assert!(transport.driver_up() || !returned || chains.load(Ordering::Relaxed) > 0);
    returned || chains.load(Ordering::Relaxed) > 0
}

fn play(mut driver: Driver<'_>, features: u64, input: &mut Input<'_>) -> bool {
    let (mut served, mut steps) = (false, 0);
    driver.start(features);
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        match input.below(8) {
            0..=2 => {
                if !driver.is_up() {
                    driver.start(features);
                }
                served |= send(&mut driver, input);
            }
            3 => {
                driver.write(CONFIG, input.u32());
                driver.read(CONFIG + u64::from(input.below(32)));
            }
            4 if input.bool() => driver.start(features),
            _ => driver.disturb(input),
        }
    }
    served
}

/// A chain of buffers that the device writes; whether it came back.
fn send(driver: &mut Driver<'_>, input: &mut Input<'_>) -> bool {
    let most = driver.size().min(4);
    let count = 1 + u64::from(input.u8()) % u64::from(most);
    let buffers: Vec<_> = (0..count)
        .map(|at| (DATA + at * 0x1_0000, input.u16().into(), WRITE))
        .collect();
    let correct = driver.correct;
    driver.returned(0);
    let head = driver.add(0, &buffers);
    driver.notify(0);
    let returned = driver.returned(0);
    if correct {
        let heads: Vec<u32> = returned.iter().map(|(head, _)| *head).collect();
        assert_eq!(heads, [u32::from(head)], "what came back");
    }
    !returned.is_empty()
}
