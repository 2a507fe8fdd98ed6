//! The policies: one file or folder an actor.
