//! What clients did and saw, and whether a store that keeps its promises could have answered so.
//!
//! All that is written consists of registers: a field of the rows of a slot, which later writes
//! replace, or the rows of one append. Every value is the number of the operation that wrote it,
//! so a value that is read names its writer. The moments of the history are counted, not timed:
//! an operation precedes another one where it was known to have taken effect before the other
//! began. What is known only ever grows: who was acknowledged has taken effect, and so has who
//! was seen.
//!
//! Each look at a table must be one moment of it: nothing that was acknowledged before is
//! missing (W1, read-your-writes), nothing is seen that came to nothing, of a batch all or
//! nothing (W2), and with an operation everything that preceded it (V1). The checks are those of
//! interval orders, as in Adya, "Weak Consistency" (1999), section 4; they refuse no correct
//! history and are not complete.

use std::collections::{BTreeMap, BTreeSet};

/// A moment: the number of beginnings and ends before it.
pub type Moment = u64;
/// The number of an operation, which is the value that it writes.
pub type OpId = usize;

/// What is written and read as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// A field of the rows of a slot.
    Slot(u8, u8),
    /// The rows of an append to a table.
    Append(Table, OpId),
}

/// The tables of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Rows with keys.
    Slots,
    /// Rows that are all kept.
    Events,
    /// Rows that are all kept until they expire.
    Recent,
}

impl Register {
    fn table(self) -> Table {
        match self {
            Register::Slot(..) => Table::Slots,
            Register::Append(table, _) => table,
        }
    }
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Writes fields of slots.
    Set(Vec<Register>),
    /// Appends rows, which expire at a time where there is one.
    Append(Table, Option<i64>),
    /// Deletes the rows of a slot.
    DeleteSlot(u8),
    /// Deletes all rows of a table.
    DeleteAll(Table),
}

#[derive(Debug)]
struct Op {
    effect: Effect,
    start: Moment,
    /// A moment by which it had taken effect, if it is known to have.
    done: Option<Moment>,
    /// Where the process died while it was under way: later it cannot take effect any more.
    cut: Option<Moment>,
    /// It is known to never have taken effect.
    dead: bool,
}

/// What was done and seen so far.
#[derive(Debug, Default)]
pub struct History {
    now: Moment,
    ops: Vec<Op>,
}

/// One look at a table, all of it.
#[derive(Debug)]
pub struct Look {
    /// The table.
    pub table: Table,
    /// When it began.
    pub start: Moment,
    /// The values that are there.
    pub seen: BTreeMap<Register, OpId>,
    /// The time by the clock before and after it.
    pub clock: (i64, i64),
}

/// Who may have written what was seen; nobody is how everything begins.
type Writer = Option<OpId>;

impl History {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// An operation begins. For an append, it is the register of its own rows that is written.
    pub fn begin(&mut self, effect: Effect) -> OpId {
        let start = self.tick();
        self.ops.push(Op { effect, start, done: None, cut: None, dead: false });
        self.ops.len() - 1
    }

    /// An operation was acknowledged.
    pub fn acknowledged(&mut self, op: OpId) {
        let now = self.tick();
        let done = &mut self.ops[op].done;
        *done = Some(done.map_or(now, |known| known.min(now)));
    }

    /// The process died.
    pub fn died(&mut self) {
        let now = self.tick();
        for op in self.ops.iter_mut().filter(|op| op.done.is_none() && op.cut.is_none()) {
            op.cut = Some(now);
        }
    }

    /// How many operations were acknowledged or seen.
    pub fn done(&self) -> usize {
        self.ops.iter().filter(|op| op.done.is_some()).count()
    }

    /// Takes in what a look at a table showed.
    ///
    /// # Errors
    /// What no store that keeps its promises could have shown.
    pub fn saw(&mut self, look: &Look) -> Result<(), String> {
        let end = self.tick();
        for (register, op) in &look.seen {
            self.written(*register, *op)?;
        }
        let registers = self.readable(look)?;
        let shown: Vec<(Register, Vec<Writer>)> = registers
            .into_iter()
            .map(|register| (register, self.writers(register, look.seen.get(&register).copied())))
            .collect();
        for (register, writers) in &shown {
            self.fresh(*register, writers, look.start)?;
        }
        for op in look.seen.values() {
            let op = &mut self.ops[*op];
            let by = op.cut.filter(|cut| *cut <= look.start).unwrap_or(end);
            op.done = Some(op.done.map_or(by, |known| known.min(by)));
        }
        for (register, writers) in &shown {
            self.bury(*register, writers, look.start);
        }
        self.one_moment(look, &shown)
    }

    /// Whether an operation may have written a value.
    fn written(&self, register: Register, op: OpId) -> Result<(), String> {
        let Some(found) = self.ops.get(op) else {
            return Err(format!("{register:?} shows {op}, which nobody wrote"));
        };
        if !self.covers(op, register)
            || !matches!(found.effect, Effect::Set(_) | Effect::Append(..))
        {
            return Err(format!("{register:?} shows {op}, which is {:?}", found.effect));
        }
        if found.dead {
            return Err(format!("{register:?} shows {op}, which had come to nothing"));
        }
        Ok(())
    }

    /// The registers that a look says something about.
    fn readable(&self, look: &Look) -> Result<Vec<Register>, String> {
        let mut all = BTreeSet::new();
        for (id, op) in self.ops.iter().enumerate() {
            match &op.effect {
                Effect::Set(registers) => all.extend(registers.iter().copied()),
                Effect::Append(table, expires) => {
                    let register = Register::Append(*table, id);
                    let (before, after) = look.clock;
                    match expires {
                        Some(expires) if *expires <= before => {
                            if look.seen.contains_key(&register) {
                                return Err(format!("{register:?} is seen after it expired"));
                            }
                        }
                        Some(expires) if *expires <= after => {}
                        _ => drop(all.insert(register)),
                    }
                }
                Effect::DeleteSlot(_) | Effect::DeleteAll(_) => {}
            }
        }
        Ok(all.into_iter().filter(|register| register.table() == look.table).collect())
    }

    fn covers(&self, op: OpId, register: Register) -> bool {
        match (&self.ops[op].effect, register) {
            (Effect::Set(registers), _) => registers.contains(&register),
            (Effect::Append(table, _), Register::Append(other, id)) => (*table, op) == (other, id),
            (Effect::DeleteSlot(slot), Register::Slot(other, _)) => *slot == other,
            (Effect::DeleteAll(table), _) => *table == register.table(),
            _ => false,
        }
    }

    /// Operations on a register that are not known to have come to nothing.
    fn on(&self, register: Register) -> impl Iterator<Item = OpId> {
        (0..self.ops.len()).filter(move |op| !self.ops[*op].dead && self.covers(*op, register))
    }

    /// Who may have written what is there: for a value its writer, for none anybody who deletes.
    fn writers(&self, register: Register, seen: Option<OpId>) -> Vec<Writer> {
        if seen.is_some() {
            return vec![seen];
        }
        let deletes = self.on(register).filter(|op| {
            matches!(self.ops[*op].effect, Effect::DeleteSlot(_) | Effect::DeleteAll(_))
        });
        std::iter::once(None).chain(deletes.map(Some)).collect()
    }

    /// Whether one operation had taken effect before another one began.
    fn precedes(&self, writer: Writer, op: OpId) -> bool {
        writer.is_none_or(|writer| {
            self.ops[writer].done.is_some_and(|done| done <= self.ops[op].start)
        })
    }

    /// Fails where every possible writer was replaced for certain before a moment.
    fn fresh(&self, register: Register, writers: &[Writer], by: Moment) -> Result<(), String> {
        let replaced = |writer: &Writer| {
            self.on(register).find(|op| {
                self.precedes(*writer, *op) && self.ops[*op].done.is_some_and(|done| done <= by)
            })
        };
        let Some(all) = writers.iter().map(replaced).collect::<Option<Vec<OpId>>>() else {
            return Ok(());
        };
        Err(format!("{register:?} shows {:?}, though {:?} came after it", writers[0], all[0]))
    }

    /// What was under way when the process died and is not there afterwards never will be.
    fn bury(&mut self, register: Register, writers: &[Writer], by: Moment) {
        let gone: Vec<OpId> = self
            .on(register)
            .filter(|op| {
                let cut =
                    self.ops[*op].done.is_none() && self.ops[*op].cut.is_some_and(|c| c <= by);
                cut && writers.iter().all(|writer| self.precedes(*writer, *op))
            })
            .collect();
        for op in gone {
            self.ops[op].dead = true;
        }
    }

    /// Fails where something is seen without what belongs to it or came before it.
    fn one_moment(&self, look: &Look, shown: &[(Register, Vec<Writer>)]) -> Result<(), String> {
        let seen: BTreeSet<OpId> = look.seen.values().copied().collect();
        for (register, writers) in shown {
            for op in self.on(*register) {
                let Some(later) =
                    seen.iter().find(|seen| op == **seen || self.precedes(Some(op), **seen))
                else {
                    continue;
                };
                if writers.iter().all(|writer| *writer != Some(op) && self.precedes(*writer, op)) {
                    return Err(format!(
                        "{register:?} shows {:?} without {op}, though {later} is seen",
                        writers[0]
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Register = Register::Slot(0, 0);
    const B: Register = Register::Slot(1, 0);

    fn set(history: &mut History, registers: &[Register]) -> OpId {
        history.begin(Effect::Set(registers.to_vec()))
    }

    fn set_whole(history: &mut History, registers: &[Register]) -> OpId {
        let op = set(history, registers);
        history.acknowledged(op);
        op
    }

    fn look(history: &mut History, seen: &[(Register, OpId)]) -> Result<(), String> {
        let start = history.tick();
        let seen = seen.iter().copied().collect();
        history.saw(&Look { table: Table::Slots, start, seen, clock: (0, 0) })
    }

    #[track_caller]
    fn refused(outcome: Result<(), String>, why: &str) {
        let said = outcome.expect_err("it could not have been so");
        assert!(said.contains(why), "{said}");
    }

    #[test]
    fn the_last_acknowledged_value_is_seen() {
        let mut history = History::default();
        look(&mut history, &[]).unwrap();
        let first = set_whole(&mut history, &[A]);
        look(&mut history, &[(A, first)]).unwrap();
        let second = set_whole(&mut history, &[A]);
        look(&mut history, &[(A, second)]).unwrap();
        refused(look(&mut history, &[(A, first)]), "came after");
        refused(look(&mut history, &[]), "came after");
    }

    #[test]
    fn what_is_under_way_may_be_seen_or_not_but_does_not_go_again() {
        let mut history = History::default();
        let first = set_whole(&mut history, &[A]);
        let second = set(&mut history, &[A]);
        look(&mut history, &[(A, first)]).unwrap();
        look(&mut history, &[(A, second)]).unwrap();
        refused(look(&mut history, &[(A, first)]), "came after");
    }

    #[test]
    fn writers_at_the_same_time_may_come_in_any_order() {
        let mut history = History::default();
        let (one, two) = (set(&mut history, &[A]), set(&mut history, &[A]));
        history.acknowledged(two);
        history.acknowledged(one);
        look(&mut history, &[(A, one)]).unwrap();
        look(&mut history, &[(A, two)]).unwrap();
    }

    #[test]
    fn a_batch_is_seen_whole() {
        let mut history = History::default();
        let both = set(&mut history, &[A, B]);
        refused(look(&mut history, &[(A, both)]), "without");
    }

    #[test]
    fn nothing_is_seen_without_what_came_before_it() {
        let mut history = History::default();
        let first = set_whole(&mut history, &[A]);
        let start = history.tick();
        let second = set_whole(&mut history, &[A]);
        let third = set_whole(&mut history, &[B]);
        let seen = BTreeMap::from([(A, first), (B, third)]);
        let table = Table::Slots;
        let outcome = history.saw(&Look { table, start, seen, clock: (0, 0) });
        refused(outcome, &format!("without {second}"));
    }

    #[test]
    fn what_a_crash_took_does_not_come_back() {
        let mut history = History::default();
        let kept = set(&mut history, &[A]);
        let lost = set(&mut history, &[B]);
        history.died();
        look(&mut history, &[(A, kept)]).unwrap();
        refused(look(&mut history, &[(A, kept), (B, lost)]), "come to nothing");
        refused(look(&mut history, &[]), "came after");
    }

    #[test]
    fn what_was_deleted_stays_so() {
        let mut history = History::default();
        let first = set_whole(&mut history, &[A]);
        let delete = history.begin(Effect::DeleteSlot(0));
        look(&mut history, &[(A, first)]).unwrap();
        look(&mut history, &[]).unwrap();
        history.acknowledged(delete);
        refused(look(&mut history, &[(A, first)]), "came after");
        let second = set_whole(&mut history, &[A]);
        look(&mut history, &[(A, second)]).unwrap();
        refused(look(&mut history, &[]), "came after");
    }

    #[test]
    fn appended_rows_are_there_until_they_expire() {
        let mut history = History::default();
        let op = history.begin(Effect::Append(Table::Recent, Some(100)));
        history.acknowledged(op);
        let mut look = |there: bool, clock| {
            let start = history.tick();
            let seen = there.then_some((Register::Append(Table::Recent, op), op));
            let seen = seen.into_iter().collect();
            history.saw(&Look { table: Table::Recent, start, seen, clock })
        };
        look(true, (90, 99)).unwrap();
        refused(look(false, (90, 99)), "came after");
        look(true, (99, 100)).unwrap();
        look(false, (99, 100)).unwrap();
        look(false, (100, 102)).unwrap();
        refused(look(true, (100, 102)), "expired");
    }

    #[test]
    fn values_have_a_writer() {
        let mut history = History::default();
        let op = set(&mut history, &[A]);
        refused(look(&mut history, &[(A, 7)]), "nobody");
        refused(look(&mut history, &[(B, op)]), "which is");
    }
}
