//! Subscriptions over a whole system.
