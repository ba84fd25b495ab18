use super::*;

fn keys(pairs: &[(&str, &str)]) -> AllocationKeys {
    let mut keys = AllocationKeys::default();
    for (key, value) in pairs {
        keys.write(AllocationKey::named(key).unwrap(), Written::from(*value));
    }
    keys
}

#[test]
fn defaults_follow_what_is_written() {
    assert_eq!(keys(&[]).resolve(), Ok(Allocation::of(MEMORY_DEFAULT)));
    let allocation = keys(&[("memory", "100M"), ("limit", "60M"), ("reservation", "40M")]);
    let expected = Allocation {
        size: Pages::mib(100),
        reservation: Pages::mib(40),
        limit: Pages::mib(60),
        shares: 1000,
        dynamic_min: Pages::mib(40),
        dynamic_max: Pages::mib(60),
    };
    assert_eq!(allocation.resolve(), Ok(expected));
    let low = keys(&[("memory", "100M"), ("dynamic_max", "20M")]).resolve();
    assert_eq!(low.unwrap().dynamic_min, Pages::mib(20));
}

#[test]
fn presets_weigh_a_vm_by_its_memory_to_the_page() {
    // 25.5 MiB.
    for (preset, shares) in [("high", 510), ("normal", 255), ("low", 127)] {
        let new = keys(&[("memory", "26112K"), ("shares", preset)]).resolve();
        assert_eq!(new.unwrap().shares, shares);
        let old = Allocation::of(Pages(6528));
        let changed = keys(&[("shares", preset)]).change(&old).unwrap();
        assert_eq!(changed.shares, shares);
    }
}

#[test]
fn a_change_leaves_the_rest() {
    let old = Allocation::of(Pages::mib(64));
    let new = keys(&[("limit", "32M")]).change(&old).unwrap();
    let limit = Pages::mib(32);
    assert_eq!(new, Allocation { limit, ..old });
}

#[test]
fn mistakes_name_what_was_written() {
    let over = "must be at most";
    // (keys, line)
    let table: &[(&[(&str, &str)], String)] = &[
        (
            &[("limit", "128M"), ("reservation", "512M")],
            format!("`reservation = \"512M\"`: {over} `limit = \"128M\"`"),
        ),
        (
            &[("limit", "1G")],
            format!("`limit = \"1G\"`: {over} `memory` (256.0 MiB by default)"),
        ),
        (
            &[("memory", "4K")],
            "`memory = \"4K\"`: must be 1M to 512G".to_owned(),
        ),
        (
            &[("shares", "1000000001")],
            "`shares = \"1000000001\"`: must be high, normal, low or 0 to 1000000000".to_owned(),
        ),
    ];
    for (pairs, line) in table {
        assert_eq!(keys(pairs).resolve().unwrap_err().to_string(), *line);
    }
}

#[test]
fn a_change_is_blamed_on_the_key_that_was_written() {
    let old = Allocation {
        reservation: Pages::mib(20),
        ..Allocation::of(Pages::mib(64))
    };
    let line = |pairs: &[(&str, &str)]| keys(pairs).change(&old).unwrap_err().to_string();
    assert_eq!(
        line(&[("limit", "10M")]),
        "`limit = \"10M\"`: must be at least `reservation` (20.0 MiB)"
    );
    assert_eq!(
        line(&[("limit", "65M")]),
        "`limit = \"65M\"`: must be at most `memory` (64.0 MiB)"
    );
    assert_eq!(
        line(&[("memory", "65M")]),
        "`memory = \"65M\"`: is fixed while the VM runs"
    );
}

#[test]
fn a_peer_is_held_to_the_same_rules() {
    let good = Allocation::of(Pages::mib(64));
    assert_eq!(good.check(), Ok(()));
    let above = Pages::mib(65);
    let bad = [
        Allocation {
            limit: above,
            ..good
        },
        Allocation {
            reservation: above,
            ..good
        },
        Allocation {
            dynamic_min: above,
            ..good
        },
        Allocation {
            dynamic_max: above,
            ..good
        },
        Allocation {
            shares: SHARES_MAX + 1,
            ..good
        },
        Allocation {
            size: Pages::ZERO,
            ..good
        },
        Allocation {
            size: Pages(u64::MAX),
            ..good
        },
    ];
    for allocation in bad {
        assert!(allocation.check().is_err(), "{allocation:?}");
    }
    let limit = Allocation {
        limit: above,
        ..good
    };
    assert_eq!(
        limit.check().unwrap_err().to_string(),
        "`limit` (65.0 MiB): must be at most `memory` (64.0 MiB)"
    );
}
