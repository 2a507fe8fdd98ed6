//! The engine over tables in memory.
