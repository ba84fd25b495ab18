//! Builds the test guests (guest-images/) so that they can be embedded.

fn main() {}
