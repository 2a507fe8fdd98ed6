//! `#[transform]`: a transform's name and description.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Error, ItemImpl, Result};

use crate::options::{Options, documentation};
use crate::signature::last_name;

pub fn expand(options: &Options, item: &ItemImpl) -> Result<TokenStream> {
    let transform = &item.self_ty;
    let own_name = last_name(transform)
        .ok_or_else(|| Error::new(transform.span(), "a transform is a type of its own"))?;
    let name = options.sql_name(&own_name.to_string(), own_name.span())?;
    let description = documentation(&item.attrs);
    Ok(quote! {
        #item

        impl ::kymo_udf::transform::TransformFunction for #transform {
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;
        }
    })
}
