//! A TOML table in which allocation keys stand beside keys of its own.
//!
//! What `#[serde(flatten)]` is for; but that one neither refuses unknown keys nor remembers in which line
//! a mistake is.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};

use crate::words::{AllocationKey, AllocationKeys};

/// The allocation keys of a table, and the others.
#[derive(Debug, Clone)]
pub(crate) struct Beside<T> {
    pub(crate) allocation: AllocationKeys,
    /// Which keys there are is its matter: it denies unknown ones.
    pub(crate) table: T,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Beside<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Beside<T>, D::Error> {
        deserializer.deserialize_map(Table(PhantomData))
    }
}

struct Table<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Table<T> {
    type Value = Beside<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Beside<T>, A::Error> {
        let mut allocation = AllocationKeys::default();
        let others = Others {
            map,
            allocation: &mut allocation,
        };
        let table = T::deserialize(MapAccessDeserializer::new(others))?;
        Ok(Beside { allocation, table })
    }
}

/// The keys that are left when the allocation keys are picked out.
struct Others<'a, A> {
    map: A,
    allocation: &'a mut AllocationKeys,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Others<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let mut seed = Some(seed);
        loop {
            match self.map.next_key_seed(AnyKey(&mut seed))? {
                None => return Ok(None),
                Some(Key::Other(key)) => return Ok(Some(key)),
                Some(Key::Allocation(key)) => self.allocation.write(key, self.map.next_value()?),
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

enum Key<T> {
    Allocation(AllocationKey),
    Other(T),
}

/// Reads a key; the seed for the others is taken when one comes.
struct AnyKey<'a, K>(&'a mut Option<K>);

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for AnyKey<'_, K> {
    type Value = Key<K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for AnyKey<'_, K> {
    type Value = Key<K::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(key) = AllocationKey::named(name) {
            return Ok(Key::Allocation(key));
        }
        let seed = self.0.take().expect("one key is read with it");
        let unknown = |error: E| {
            let known = AllocationKey::ALL.map(|key| format!("`{key}`")).join(", ");
            E::custom(format_args!("{}, {known}", error.to_string().trim_end()))
        };
        let key = seed.deserialize(name.into_deserializer());
        key.map(Key::Other).map_err(unknown)
    }
}
