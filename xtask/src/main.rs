//! The repository's own commands: `cargo xtask check | test | demo | lab`.
fn main() {}
