//! What a call may mean that no function answers to: the hint of the error.

use kymo_kernel::{Code, Error};
use kymo_plugins::{Kind, PluginMap};

use super::super::text::nearest;
use super::calls::Called;
use super::lending::Lending;

/// The error of planning a statement with these calls. Where it complains about a function that
/// a plugin has, or nearly has, its hint says how that is called.
pub(super) fn explain(error: Error, calls: &[Called], lending: &Lending) -> Error {
    if error.code() != Code::FunctionNotFound {
        return error;
    }
    let Some(called) = calls.iter().find(|called| is_about(error.message(), &called.key)) else {
        return error;
    };
    match lending.resolve(called) {
        Ok(Some(function)) if function.function().kind == Kind::Window => {
            error.with_hint("it is a window function: OVER (PARTITION BY … ORDER BY …) follows it")
        }
        Ok(Some(_)) => error,
        Ok(None) | Err(_) => hinted(error, called, lending.plugins(), lending.seed()),
    }
}

/// The error with the function that may be meant, if there is one.
pub(super) fn hinted(error: Error, called: &Called, plugins: &PluginMap, seed: u64) -> Error {
    let known: Vec<(String, String)> = plugins
        .functions(seed)
        .map(|each| (each.version().name().to_string(), each.function().name.clone()))
        .collect();
    match like(called, &known) {
        Some(like) => error.with_hint(format!("did you mean {like}()?")),
        None => error,
    }
}

/// Of these plugins and functions the one that a name is most like: of the same name in another
/// plugin, or with a name that differs by little.
fn like(called: &Called, known: &[(String, String)]) -> Option<String> {
    let last = called.parts.last()?;
    let full: Vec<String> = known.iter().map(|(plugin, name)| format!("{plugin}.{name}")).collect();
    let at = |at: Option<usize>| at.map(|at| full[at].clone());
    let same = at(known.iter().position(|(_, name)| name == last));
    let near_full = || nearest(&called.parts.join("."), full.iter().map(String::as_str));
    let near_last = || {
        let near = nearest(last, known.iter().map(|(_, name)| name.as_str()))?;
        at(known.iter().position(|(_, name)| name == near))
    };
    same.or_else(|| near_full().map(str::to_owned)).or_else(near_last)
}

/// Whether a message is about the function of this name.
fn is_about(message: &str, name: &str) -> bool {
    let rest = message.strip_prefix("window ").unwrap_or(message);
    let rest = rest.strip_prefix("function ").and_then(|rest| rest.strip_prefix(name));
    rest.is_some_and(|rest| rest.starts_with('('))
}

#[cfg(test)]
mod tests {
    use super::super::calls::Place;
    use super::*;

    #[test]
    fn the_same_name_elsewhere_is_meant_before_one_that_is_spelled_alike() {
        let known = [("weather", "c2f"), ("weather", "f2c"), ("golden", "twice")]
            .map(|(plugin, name)| (plugin.to_owned(), name.to_owned()));
        let found = |parts: &[&str]| {
            let parts: Vec<String> = parts.iter().map(|each| (*each).to_owned()).collect();
            let called = Called { key: parts.join("."), parts, place: Place::Value };
            like(&called, &known)
        };
        for (parts, meant) in [
            (&["c2f"][..], Some("weather.c2f")),
            (&["climate", "f2c"], Some("weather.f2c")),
            (&["wether", "c2f"], Some("weather.c2f")),
            (&["weather", "c2"], Some("weather.c2f")),
            (&["twise"], Some("golden.twice")),
            (&["entirely", "different"], None),
        ] {
            assert_eq!(found(parts).as_deref(), meant, "{parts:?}");
        }
    }

    #[test]
    fn a_message_is_about_one_whole_name() {
        assert!(is_about("function a.b() does not exist", "a.b"));
        assert!(is_about("window function a.b() does not exist", "a.b"));
        assert!(!is_about("function a.bc() does not exist", "a.b"));
    }
}
