//! `#[derive(State)]`: a struct of numbers as columns.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Error, Fields, Result};

pub fn expand(item: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &item.data else {
        return Err(Error::new(item.span(), "a state is a struct of numbers"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(data.fields.span(), "the members of a state have names"));
    };
    let state = &item.ident;
    let members: Vec<_> = fields.named.iter().filter_map(|field| field.ident.as_ref()).collect();
    let types: Vec<_> = fields.named.iter().map(|field| &field.ty).collect();
    let names = members.iter().map(ToString::to_string);
    let count = members.len();
    // Not the members' own names: a member may be called `rows`.
    let variables: Vec<_> = members.iter().map(|name| format_ident!("column_of_{name}")).collect();
    Ok(quote! {
        impl ::kymo_udf::State for #state {
            fn fields() -> ::std::vec::Vec<::kymo_udf::Field> {
                ::std::vec![#(::kymo_udf::state::member_field::<#types>(#names)),*]
            }
            fn encode(states: &[Self]) -> ::std::vec::Vec<::kymo_udf::Column> {
                ::std::vec![#(::kymo_udf::state::member(states, |state| state.#members)),*]
            }
            fn decode(
                columns: &[::kymo_udf::Column],
                rows: usize,
            ) -> ::std::result::Result<::std::vec::Vec<Self>, ::kymo_udf::Error> {
                let [#(#variables),*]: &[_; #count] = ::kymo_udf::column::exactly(columns)?;
                #(let #variables = ::kymo_udf::column::Arg::<#types>::column(#variables, rows)?;)*
                ::std::result::Result::Ok(
                    (0..rows).map(|row| #state { #(#members: #variables.get(row)),* }).collect(),
                )
            }
        }
    })
}
