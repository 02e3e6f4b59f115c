//! A migration that is added or changed is part of the program: build it again.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
