//! `#[table]`: a function that answers an iterator of rows.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Error, ItemFn, Result};

use crate::options::{Options, documentation};
use crate::signature;

pub fn expand(options: &Options, item: &ItemFn) -> Result<TokenStream> {
    let function = &item.sig.ident;
    let parameters = signature::parameters(signature::inputs(&item.sig.inputs))?;
    let Some(returned) = signature::output(&item.sig.output) else {
        return Err(Error::new(item.sig.span(), "a table function answers an iterator of tuples"));
    };
    if options.columns.is_empty() {
        let text = "name the columns: #[table(columns = \"time, value\")]";
        return Err(Error::new(function.span(), text));
    }
    let fails = signature::is_result(returned);
    let types = parameters.iter().map(|each| &each.plain);
    let opened = parameters.iter().map(|each| &each.plain);
    let names = parameters.iter().map(|each| &each.name);
    let nullable = parameters.iter().map(|each| each.nullable);
    let variables: Vec<&Ident> = parameters.iter().map(|each| &each.variable).collect();
    let strict = parameters.iter().filter(|each| !each.nullable).map(|each| &each.variable);
    let values = parameters.iter().map(|each| {
        let variable = &each.variable;
        if each.nullable { quote!(#variable.option(0)) } else { quote!(#variable.get(0)) }
    });
    let count = parameters.len();
    let columns = &options.columns;
    let never = parameters.iter().map(|_| quote!(::std::unreachable!()));
    let describe = if fails { quote!(columns_if) } else { quote!(columns) };
    let attempt = fails.then(|| quote!(?));
    let name = options.sql_name(&function.to_string(), function.span())?;
    let description = documentation(&item.attrs);
    let volatility = options.volatility();
    let visibility = &item.vis;
    Ok(quote! {
        #item

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #visibility struct #function {}

        impl ::kymo_udf::table::TableFunction for #function {
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;
            const VOLATILITY: ::kymo_udf::Volatility = #volatility;
            fn parameters() -> ::std::vec::Vec<::kymo_udf::Field> {
                ::std::vec![#(::kymo_udf::column::parameter::<#types>(#names, #nullable)),*]
            }
            #[allow(unreachable_code)]
            fn returns() -> ::std::vec::Vec<::kymo_udf::Field> {
                ::kymo_udf::table::#describe(|| #function(#(#never),*), [#(#columns),*])
            }
            fn open(
                args: ::std::vec::Vec<::kymo_udf::Column>,
            ) -> ::std::result::Result<
                ::std::boxed::Box<dyn ::kymo_udf::table::Rows>,
                ::kymo_udf::Error,
            > {
                // An instance serves one cursor: its arguments live as long as it does, and the
                // iterator may borrow from them.
                let args: &'static [::kymo_udf::Column] = args.leak();
                let [#(#variables),*]: &'static [_; #count] = ::kymo_udf::column::exactly(args)?;
                #(let #variables = ::kymo_udf::Arg::<#opened>::column(#variables, 1)?;)*
                if !(true #(&& #strict.is_valid(0))*) {
                    return ::std::result::Result::Ok(::kymo_udf::table::none());
                }
                ::std::result::Result::Ok(::kymo_udf::table::rows(#function(#(#values),*)#attempt))
            }
        }
    })
}
