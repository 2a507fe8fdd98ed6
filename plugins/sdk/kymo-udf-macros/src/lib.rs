//! The attributes of `kymo-udf`: they read a function's signature and write what the server
//! needs beside it. The function itself stays as it is.

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemFn, ItemImpl, parse_macro_input};

mod aggregate;
mod options;
mod scalar;
mod signature;
mod state;
mod table;
mod transform;
mod window;

/// Makes a scalar function of a function: see `kymo_udf::scalar`.
#[proc_macro_attribute]
pub fn scalar(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemFn);
    finish(options::read(attribute.into()).and_then(|options| scalar::expand(&options, &item)))
}

/// Makes an aggregate of an implementation: see `kymo_udf::aggregate`.
#[proc_macro_attribute]
pub fn aggregate(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemImpl);
    finish(options::read(attribute.into()).and_then(|options| aggregate::expand(&options, &item)))
}

/// Makes a window function of a function: see `kymo_udf::window`.
#[proc_macro_attribute]
pub fn window(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemFn);
    finish(options::read(attribute.into()).and_then(|options| window::expand(&options, &item)))
}

/// Makes a table function of a function: see `kymo_udf::table`.
#[proc_macro_attribute]
pub fn table(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemFn);
    finish(options::read(attribute.into()).and_then(|options| table::expand(&options, &item)))
}

/// Gives a transform its name and description: see `kymo_udf::transform`.
#[proc_macro_attribute]
pub fn transform(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemImpl);
    finish(options::read(attribute.into()).and_then(|options| transform::expand(&options, &item)))
}

/// Makes an aggregate's state of a struct of numbers: one column a member.
#[proc_macro_derive(State)]
pub fn state(item: TokenStream) -> TokenStream {
    finish(state::expand(&parse_macro_input!(item as DeriveInput)))
}

fn finish(expanded: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    expanded.unwrap_or_else(|error| error.to_compile_error()).into()
}
