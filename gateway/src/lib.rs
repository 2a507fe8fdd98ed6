//! The edge: HTTP, the PostgreSQL wire protocol, authentication and the command line.
