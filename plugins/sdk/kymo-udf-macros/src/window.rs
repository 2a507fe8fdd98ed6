//! `#[window]`: a function of one whole partition.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, Result, Type};

use crate::options::{Options, documentation};
use crate::signature::{self, Parameter};

pub fn expand(options: &Options, item: &ItemFn) -> Result<TokenStream> {
    let function = &item.sig.ident;
    let is_argument = |input: &&FnArg| !is_partition(input);
    let inputs = signature::inputs(&item.sig.inputs);
    let parameters = signature::parameters(inputs.filter(is_argument))?;
    let types = parameters.iter().map(value_type).collect::<Result<Vec<&Type>>>()?;
    let variables: Vec<&Ident> = parameters.iter().map(|each| &each.variable).collect();
    let mut arguments = variables.iter();
    let values = signature::inputs(&item.sig.inputs).map(|input| match is_partition(input) {
        true => quote!(partition),
        false => arguments.next().map(|variable| quote!(#variable)).unwrap_or_default(),
    });
    let called = quote!(#function(#(#values),*));
    let (answer, answers) = answers(item, called)?;
    let names = parameters.iter().map(|each| &each.name);
    let count = parameters.len();
    let name = options.sql_name(&function.to_string(), function.span())?;
    let description = documentation(&item.attrs);
    let volatility = options.volatility();
    let visibility = &item.vis;
    Ok(quote! {
        #item

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #visibility struct #function {}

        impl ::kymo_udf::window::WindowFunction for #function {
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;
            const VOLATILITY: ::kymo_udf::Volatility = #volatility;
            fn parameters() -> ::std::vec::Vec<::kymo_udf::Field> {
                ::std::vec![#(::kymo_udf::column::parameter::<#types>(#names, true)),*]
            }
            fn returns() -> ::kymo_udf::Field {
                ::kymo_udf::column::returned::<#answer>(false)
            }
            fn call(
                args: &[::kymo_udf::Argument],
                partition: ::kymo_udf::Partition<'_>,
            ) -> ::std::result::Result<::kymo_udf::Column, ::kymo_udf::Error> {
                let [#(#variables),*]: &[_; #count] = ::kymo_udf::column::exactly(args)?;
                #(let #variables = ::kymo_udf::Arg::new(#variables, partition.rows())?;)*
                ::kymo_udf::window::column::<#answer>(#answers, partition.rows())
            }
        }
    })
}

fn is_partition(input: &FnArg) -> bool {
    let FnArg::Typed(typed) = input else { return false };
    signature::last_name(&typed.ty).is_some_and(|name| name == "Partition")
}

/// The `T` of a parameter `Arg<T>`.
fn value_type(parameter: &Parameter) -> Result<&Type> {
    signature::generic(&parameter.plain, "Arg").ok_or_else(|| {
        Error::new(parameter.plain.span(), "a window function takes `Arg<T>` and `Partition`")
    })
}

/// The type of one answer, and the expression for all of them.
fn answers(item: &ItemFn, called: TokenStream) -> Result<(&Type, TokenStream)> {
    let wrong =
        || Error::new(item.sig.span(), "a window function answers a `Vec`, one entry a row");
    let returned = signature::output(&item.sig.output).ok_or_else(wrong)?;
    match signature::generic(returned, "Result") {
        Some(inner) => Ok((signature::generic(inner, "Vec").ok_or_else(wrong)?, quote!(#called?))),
        None => Ok((signature::generic(returned, "Vec").ok_or_else(wrong)?, called)),
    }
}
