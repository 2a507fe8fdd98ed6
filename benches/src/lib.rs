//! What benches share: data generators.
