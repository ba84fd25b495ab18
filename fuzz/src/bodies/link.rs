//! The link's codec, in both directions: any bytes decode to a message or an error, and a message
//! that was made or decoded comes through again as it is.

use std::fmt::Debug;

use tidemark::link::codec::{Message, decode, encode};
use tidemark::link::message::{MESSAGE_BYTES_MAX, ToHost, ToVm, VERSION};

use super::input::Input;
use super::messages;

/// Whether a message came through.
pub fn body(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let kind = input.u8();
    match kind & 7 {
        0..=2 => {
            let made = messages::to_host(&mut input);
            sends(&made, &mut input)
        }
        3..=5 => {
            let made = messages::to_vm(&mut input);
            sends(&made, &mut input)
        }
        6 => receives(input.rest(), kind & 8 == 0),
        _ => receives(&[&[VERSION], input.rest()].concat(), kind & 8 == 0),
    }
}

/// A message that breaks no bound comes through; damaged on its way, it is a message or an error.
fn sends<M: Message + Debug + PartialEq>(message: &M, input: &mut Input<'_>) -> bool {
    let Ok(mut datagram) = encode(message) else {
        return false;
    };
    assert!(datagram.len() <= MESSAGE_BYTES_MAX);
    assert_eq!(decode::<M>(&datagram).as_ref(), Ok(message));
    for _ in 0..4 {
        let at = usize::from(input.u16()) % datagram.len();
        datagram[at] = input.u8();
        receives(&datagram, true);
        receives(&datagram, false);
        datagram.truncate(datagram.len() - usize::from(input.u8() / 192));
        if datagram.is_empty() {
            break;
        }
    }
    true
}

fn receives(datagram: &[u8], by_host: bool) -> bool {
    match by_host {
        true => comes_through::<ToHost>(datagram),
        false => comes_through::<ToVm>(datagram),
    }
}

fn comes_through<M: Message + Debug + PartialEq>(datagram: &[u8]) -> bool {
    let Ok(message) = decode::<M>(datagram) else {
        return false;
    };
    // A bound that holds here holds there.
    let again = encode(&message).expect("what was received can be sent");
    assert_eq!(decode::<M>(&again), Ok(message));
    true
}
