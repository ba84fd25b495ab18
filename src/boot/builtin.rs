//! The test guests that are part of this program: ELF images built from `guest-images/`.

mod table {
    include!(concat!(env!("OUT_DIR"), "/guest_images.rs"));
}

/// The image of a built-in guest.
#[must_use]
pub fn find(name: &str) -> Option<&'static [u8]> {
    table::IMAGES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, image)| *image)
}

/// The names of the built-in guests, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    table::IMAGES.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_a_small_elf_file() {
        for name in names() {
            let image = find(name).expect("listed");
            assert!(image.starts_with(b"\x7fELF"), "{name}");
            assert!(image.len() < 128 << 10, "{name} has {} bytes", image.len());
        }
    }

    #[test]
    fn names_are_sorted_and_unknown_ones_are_not_found() {
        assert!(names().is_sorted());
        assert!(names().any(|name| name == "verify"));
        assert!(find("no such guest").is_none());
    }
}
