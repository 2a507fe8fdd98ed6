//! What changes of alert rules and silences mean. That a rule's query can be planned is for the
//! query actor to say, before it asks for the change.

use kymo_kernel::alert::{AlertDef, SilenceDef, no_alert};
use kymo_kernel::message::AlertDdl;
use kymo_kernel::schema::check_name;
use kymo_kernel::storage::meta::{Op, Snapshot};
use kymo_kernel::{Code, Error, Result};

use super::{Limits, Plan, channels};

/// Plans one change.
///
/// # Errors
/// `alert_not_found` where a name or number is missing, `already_exists` where a name is taken,
/// `invalid_input` for what cannot be, `limit_reached` for one rule or silence too many.
pub(super) fn plan(snapshot: &Snapshot, change: &AlertDdl, limits: Limits) -> Result<Plan> {
    let ops = match change {
        AlertDdl::Create { alert, if_not_exists } => {
            create(snapshot, alert, *if_not_exists, limits.max_alerts)?
        }
        AlertDdl::Drop { name, if_exists } => match snapshot.alerts.get(name) {
            Some(known) => {
                of_a_statement(known)?;
                vec![Op::DropAlert { name: name.clone() }]
            }
            None if *if_exists => Vec::new(),
            None => return Err(no_alert(name)),
        },
        AlertDdl::Pause { name, paused } => {
            let known = snapshot.alerts.get(name).ok_or_else(|| no_alert(name))?;
            of_a_statement(known)?;
            if known.paused == *paused {
                Vec::new()
            } else {
                let revision = known.revision + 1;
                let alert = AlertDef { paused: *paused, revision, ..AlertDef::clone(known) };
                vec![Op::PutAlert { alert }]
            }
        }
        AlertDdl::Files { put, drop } => files(snapshot, put, drop, limits.max_alerts)?,
        AlertDdl::Silence(silence) => silence_ops(snapshot, silence, limits.max_silences)?,
        AlertDdl::DropSilence { id } => vec![Op::DropSilence { id: *id }],
        AlertDdl::CreateChannel { channel, if_not_exists } => {
            channels::create(snapshot, channel, *if_not_exists, limits.max_channels)?
        }
        AlertDdl::DropChannel { name, if_exists } => channels::drop(snapshot, name, *if_exists)?,
    };
    Ok(Plan { ops, ..Plan::default() })
}

fn create(
    snapshot: &Snapshot,
    alert: &AlertDef,
    if_not_exists: bool,
    most: usize,
) -> Result<Vec<Op>> {
    check(alert)?;
    if let Some(known) = snapshot.alerts.get(&alert.name) {
        if if_not_exists {
            return Ok(Vec::new());
        }
        return Err(taken(known));
    }
    if snapshot.alerts.len() >= most {
        return Err(too_many(most));
    }
    Ok(vec![Op::PutAlert { alert: AlertDef { revision: 1, ..alert.clone() } }])
}

/// What a definition can be refused for by itself: its names and its times.
///
/// # Errors
/// `invalid_input`.
pub(crate) fn check(alert: &AlertDef) -> Result<()> {
    check_name("alert", &alert.name)?;
    for name in alert.labels.keys().chain(alert.annotations.keys()).chain(&alert.channels) {
        check_name("label, annotation or channel", name)?;
    }
    alert.check()
}

/// The error for a second rule of a name.
pub(crate) fn taken(known: &AlertDef) -> Error {
    let name = &known.name;
    let (text, hint) = match &known.origin {
        Some(origin) => (
            format!("alert {name:?} exists, from the file {:?}", origin.file),
            "use another name, or take the rule out of the file and RELOAD ALERT RULES",
        ),
        None => (
            format!("alert {name:?} exists"),
            "use CREATE ALERT IF NOT EXISTS, or DROP ALERT first",
        ),
    };
    Error::new(Code::AlreadyExists, text).with_hint(hint)
}

/// The error for one rule too many.
pub(crate) fn too_many(most: usize) -> Error {
    Error::new(Code::LimitReached, format!("there are {most} alert rules already"))
        .with_hint("drop some, or raise alerts.max_rules")
}

/// Refuses to have a statement change a rule that a file defines: the next reload would undo it.
fn of_a_statement(known: &AlertDef) -> Result<()> {
    let Some(origin) = &known.origin else { return Ok(()) };
    let text = format!("alert {:?} comes from the file {:?}", known.name, origin.file);
    Err(Error::new(Code::InvalidInput, text).with_hint(
        "change the file and RELOAD ALERT RULES; SILENCE holds its notifications back meanwhile",
    ))
}

/// What files say now. Rules that statements created are not theirs to change.
fn files(snapshot: &Snapshot, put: &[AlertDef], drop: &[String], most: usize) -> Result<Vec<Op>> {
    let of_files =
        |name: &&String| snapshot.alerts.get(*name).is_some_and(|known| known.origin.is_some());
    let mut ops: Vec<Op> =
        drop.iter().filter(of_files).map(|name| Op::DropAlert { name: name.clone() }).collect();
    let fresh = put.iter().filter(|alert| !snapshot.alerts.contains_key(&alert.name)).count();
    if fresh > 0 && snapshot.alerts.len() - ops.len() + fresh > most {
        return Err(too_many(most));
    }
    for alert in put {
        check(alert)?;
        let revision = match snapshot.alerts.get(&alert.name) {
            Some(known) if known.origin.is_none() => return Err(taken(known)),
            Some(known) => known.revision + 1,
            None => 1,
        };
        ops.push(Op::PutAlert { alert: AlertDef { revision, ..alert.clone() } });
    }
    Ok(ops)
}

/// A new silence, and none of those that have ended.
fn silence_ops(snapshot: &Snapshot, silence: &SilenceDef, most: usize) -> Result<Vec<Op>> {
    if silence.ends_ns <= silence.starts_ns {
        return Err(Error::new(Code::InvalidInput, "a silence lasts longer than no time")
            .with_hint("SILENCE … FOR '2h'"));
    }
    let ended = |known: &SilenceDef| known.ends_ns <= silence.starts_ns;
    let ended: Vec<u64> =
        snapshot.silences.values().filter(|known| ended(known)).map(|known| known.id).collect();
    if snapshot.silences.len() - ended.len() >= most {
        let text = format!("there are {most} silences already");
        return Err(Error::new(Code::LimitReached, text)
            .with_hint("drop some, or raise alerts.max_silences"));
    }
    let id = snapshot.silences.keys().next_back().copied().unwrap_or(0) + 1;
    let mut ops: Vec<Op> = ended.into_iter().map(|id| Op::DropSilence { id }).collect();
    ops.push(Op::PutSilence { silence: SilenceDef { id, ..silence.clone() } });
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use kymo_kernel::alert::{AlertOrigin, Matcher};
    use kymo_kernel::ids::{Epoch, PartitionId};
    use kymo_kernel::storage::meta::{Author, Edit};
    use uuid::Uuid;

    use super::*;

    const LIMITS: Limits = Limits {
        max_tables: 1,
        max_columns: 1,
        max_plugins: 1,
        max_versions: 1,
        max_transforms: 1,
        max_continuous: 0,
        max_alerts: 2,
        max_silences: 1,
        max_channels: 1,
    };

    fn alert(name: &str) -> AlertDdl {
        let alert = AlertDef::new(name, "ada", "SELECT 1");
        AlertDdl::Create { alert: Box::new(alert), if_not_exists: false }
    }

    fn silence(starts_ns: i64, ends_ns: i64) -> AlertDdl {
        AlertDdl::Silence(SilenceDef {
            id: 0,
            matcher: Matcher::default(),
            starts_ns,
            ends_ns,
            author: "ada".to_owned(),
            comment: String::new(),
        })
    }

    fn after(snapshot: &Snapshot, change: &AlertDdl) -> Result<Snapshot> {
        let plan = plan(snapshot, change, LIMITS)?;
        let by = Author { node: "n".to_owned(), partition: PartitionId::ONLY, epoch: Epoch(0) };
        snapshot.apply(&Edit { commit_id: Uuid::nil(), by, ops: plan.ops })
    }

    #[test]
    fn rules_are_created_once_paused_and_dropped() {
        let one = after(&Snapshot::default(), &alert("a")).unwrap();
        assert_eq!(after(&one, &alert("a")).unwrap_err().code(), Code::AlreadyExists);
        let pause = |paused| AlertDdl::Pause { name: "a".to_owned(), paused };
        let paused = after(&one, &pause(true)).unwrap();
        assert_eq!((paused.alerts["a"].paused, paused.alerts["a"].revision), (true, 2));
        assert_eq!(after(&paused, &pause(true)).unwrap(), paused);
        assert!(!after(&paused, &pause(false)).unwrap().alerts["a"].paused);
        let two = after(&one, &alert("b")).unwrap();
        assert_eq!(after(&two, &alert("c")).unwrap_err().code(), Code::LimitReached);
        let drop = |if_exists| AlertDdl::Drop { name: "a".to_owned(), if_exists };
        let gone = after(&one, &drop(false)).unwrap();
        assert!(gone.alerts.is_empty());
        assert_eq!(after(&gone, &drop(false)).unwrap_err().code(), Code::AlertNotFound);
        assert_eq!(after(&gone, &drop(true)).unwrap(), gone);
    }

    #[test]
    fn rules_of_files_change_with_the_files_alone() {
        let of_file = |name: &str, hold_ns| {
            let AlertDdl::Create { alert, .. } = alert(name) else { panic!("no rule") };
            let origin = AlertOrigin { file: "a.yml".to_owned(), group: "g".to_owned() };
            AlertDef { hold_ns, origin: Some(origin), ..*alert }
        };
        let files = |put: Vec<AlertDef>, drop: &[&str]| AlertDdl::Files {
            put,
            drop: drop.iter().map(|name| (*name).to_owned()).collect(),
        };
        let one = after(&Snapshot::default(), &alert("own")).unwrap();
        let two = after(&one, &files(vec![of_file("a", 0)], &[])).unwrap();
        assert_eq!(two.alerts["a"].revision, 1);
        let changed = after(&two, &files(vec![of_file("a", 7)], &[])).unwrap();
        assert_eq!((changed.alerts["a"].revision, changed.alerts["a"].hold_ns), (2, 7));
        // Statements do not change what a file says, nor files what a statement created.
        for change in [
            AlertDdl::Drop { name: "a".to_owned(), if_exists: true },
            AlertDdl::Pause { name: "a".to_owned(), paused: true },
        ] {
            let error = after(&changed, &change).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput);
            assert!(error.message().contains("a.yml"), "{error:?}");
        }
        let clash = after(&changed, &alert("a")).unwrap_err();
        assert_eq!(clash.code(), Code::AlreadyExists);
        assert!(clash.message().contains("a.yml"), "{clash:?}");
        let clash = after(&changed, &files(vec![of_file("own", 0)], &[])).unwrap_err();
        assert_eq!(clash.code(), Code::AlreadyExists);
        let kept = after(&changed, &files(Vec::new(), &["own", "none"])).unwrap();
        assert_eq!(kept, changed);
        // One in the place of another, within the limit.
        let many = after(&changed, &files(vec![of_file("b", 0)], &[])).unwrap_err();
        assert_eq!(many.code(), Code::LimitReached);
        let moved = after(&changed, &files(vec![of_file("b", 0)], &["a"])).unwrap();
        assert_eq!(moved.alerts.keys().collect::<Vec<_>>(), ["b", "own"]);
    }

    #[test]
    fn a_new_silence_takes_the_place_of_those_that_ended() {
        let one = after(&Snapshot::default(), &silence(0, 10)).unwrap();
        assert_eq!(one.silences.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(after(&one, &silence(5, 20)).unwrap_err().code(), Code::LimitReached);
        let two = after(&one, &silence(10, 20)).unwrap();
        assert_eq!(two.silences.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(after(&two, &silence(7, 7)).unwrap_err().code(), Code::InvalidInput);
        let none = after(&two, &AlertDdl::DropSilence { id: 2 }).unwrap();
        assert!(none.silences.is_empty());
        let error = after(&none, &AlertDdl::DropSilence { id: 2 }).unwrap_err();
        assert_eq!(error.code(), Code::AlertNotFound);
    }
}
