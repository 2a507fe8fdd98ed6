//! Which rules look at which rows: rules of class `rows` by table and shape, and within a shape
//! by the value of the tag that routes rows to them.
//!
//! A commit is looked at once for each shape, not for each rule: a row finds the rules that want
//! its host by one look-up, and all pairs of rows and rules are evaluated together.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat};
use arrow::datatypes::Int32Type;
use hashbrown::HashMap;
use kymo_kernel::ids::TableId;
use kymo_kernel::schema::tag_type;
use kymo_kernel::{Error, Result};

use super::facts::Facts;
use crate::query::{Input, Layout, Own, Pairs, Shape};

/// Pairs of rows and rules that are evaluated at a time: the batch of a query.
const PAIRS: usize = 8192;

/// Rules that share a shape.
pub struct Group {
    shape: Arc<Shape>,
    layout: Arc<Layout>,
    /// The rules' numbers.
    rules: Vec<u32>,
    /// For each constant of the shape the values of all rules.
    constants: Vec<ArrayRef>,
    /// The places in `rules` by the value of the tag that routes.
    routes: HashMap<Box<str>, Vec<u32>>,
}

/// A rule as a member of a group.
pub struct Member {
    /// Its number.
    pub rule: u32,
    /// Its shape.
    pub shape: Arc<Shape>,
    /// What the columns of its rows are.
    pub layout: Arc<Layout>,
    /// Its own part.
    pub own: Own,
}

/// What came of some rows.
pub struct Evaluated {
    /// The rows.
    pub facts: Facts,
    /// The number of each row's rule.
    pub rules: Vec<u32>,
}

/// Rows that were evaluated, and rules that failed on them.
pub type Outcome = (Vec<Evaluated>, Vec<(u32, Error)>);

/// All rules of class `rows`, by table.
#[derive(Default)]
pub struct Groups(HashMap<TableId, Vec<Arc<Group>>>);

impl Groups {
    /// Puts rules that are alike together.
    ///
    /// # Errors
    /// `internal` where constants of one shape differ in type.
    pub fn of(members: Vec<Member>) -> Result<Groups> {
        let mut alike: HashMap<String, Vec<Member>> = HashMap::new();
        for member in members {
            let key = format!("{}|{:?}", member.shape.key(), member.layout.names);
            alike.entry(key).or_default().push(member);
        }
        let mut groups: HashMap<TableId, Vec<Arc<Group>>> = HashMap::new();
        for members in alike.into_values() {
            let group = Group::of(members)?;
            groups.entry(group.shape.table()).or_default().push(Arc::new(group));
        }
        Ok(Groups(groups))
    }

    /// The groups of a table.
    #[must_use]
    pub fn table(&self, table: TableId) -> &[Arc<Group>] {
        self.0.get(&table).map_or(&[], Vec::as_slice)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Group {
    /// A group of rules that share their shape; at least one.
    ///
    /// # Errors
    /// `internal` where their constants differ in type.
    pub fn of(members: Vec<Member>) -> Result<Group> {
        let Some(first) = members.first() else {
            return Err(Error::internal("a group without a rule"));
        };
        let (shape, layout) = (first.shape.clone(), first.layout.clone());
        let constants = (0..first.own.constants.len()).map(|place| {
            let values: Vec<&dyn Array> = members
                .iter()
                .filter_map(|member| member.own.constants.get(place))
                .map(AsRef::as_ref)
                .collect();
            concat(&values).map_err(defect)
        });
        let constants = constants.collect::<Result<_>>()?;
        let mut routes: HashMap<Box<str>, Vec<u32>> = HashMap::new();
        for (place, member) in (0_u32..).zip(&members) {
            if let Some(value) = &member.own.route {
                routes.entry(value.as_str().into()).or_default().push(place);
            }
        }
        let rules = members.iter().map(|member| member.rule).collect();
        Ok(Group { shape, layout, rules, constants, routes })
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The numbers of the rules.
    #[must_use]
    pub fn rules(&self) -> &[u32] {
        &self.rules
    }

    /// The values of the tag that routes, for the rules that `wanted` chooses; `None` where
    /// rows are not routed.
    pub fn routed(&self, wanted: impl Fn(u32) -> bool) -> Option<Vec<String>> {
        self.shape.route()?;
        let chosen = |places: &Vec<u32>| {
            places
                .iter()
                .any(|place| self.rules.get(*place as usize).is_some_and(|rule| wanted(*rule)))
        };
        let values = self.routes.iter().filter(|(_, places)| chosen(places));
        Some(values.map(|(value, _)| value.to_string()).collect())
    }

    /// Evaluates rows of the table. A rule that fails on them does not keep the others from
    /// being evaluated.
    ///
    /// # Errors
    /// `internal` only.
    pub fn run(&self, rows: &RecordBatch) -> Result<Outcome> {
        let (mut evaluated, mut failed) = (Vec::new(), Vec::new());
        let Some(input) = self.shape.input(rows)? else { return Ok((evaluated, failed)) };
        let pairs = self.pairs(&input, rows.num_rows())?;
        for part in pairs.chunks(PAIRS) {
            match self.evaluate(&input, part) {
                Ok(done) => evaluated.push(done),
                Err(_) => self.apart(&input, part, &mut evaluated, &mut failed),
            }
        }
        Ok((evaluated, failed))
    }

    /// Evaluates each rule by itself, to see which one fails.
    fn apart(
        &self,
        input: &Input,
        pairs: &[(u32, u32)],
        evaluated: &mut Vec<Evaluated>,
        failed: &mut Vec<(u32, Error)>,
    ) {
        let mut by_rule = pairs.to_vec();
        by_rule.sort_by_key(|(row, rule)| (*rule, *row));
        for own in by_rule.chunk_by(|one, other| one.1 == other.1) {
            match self.evaluate(input, own) {
                Ok(done) => evaluated.push(done),
                Err(error) => {
                    let rule = own.first().and_then(|(_, place)| self.rules.get(*place as usize));
                    failed.extend(rule.map(|rule| (*rule, error)));
                }
            }
        }
    }

    fn evaluate(&self, input: &Input, pairs: &[(u32, u32)]) -> Result<Evaluated> {
        let pairs = Pairs {
            rows: pairs.iter().map(|(row, _)| *row).collect::<Vec<_>>().into(),
            rules: pairs.iter().map(|(_, rule)| *rule).collect::<Vec<_>>().into(),
        };
        let output = self.shape.run(input, &pairs, &self.constants)?;
        let facts = Facts::of(&self.layout, &output.rows, Some(&output.times))?;
        let number = |place: &u32| self.rules.get(*place as usize).copied().unwrap_or(u32::MAX);
        let places: &UInt32Array = &output.rules;
        Ok(Evaluated { facts, rules: places.values().iter().map(number).collect() })
    }

    /// Which rows concern which rules, by place.
    fn pairs(&self, input: &Input, count: usize) -> Result<Vec<(u32, u32)>> {
        let count = u32::try_from(count).map_err(|_| Error::internal("a batch is too long"))?;
        if self.shape.route().is_none() {
            let rules = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
            return Ok((0..count)
                .flat_map(|row| (0..rules).map(move |rule| (row, rule)))
                .collect());
        }
        // Without the tag no row has the value that a rule wants.
        let Some(route) = &input.route else { return Ok(Vec::new()) };
        let tags = cast(route, &tag_type()).map_err(defect)?;
        let tags: &DictionaryArray<Int32Type> = tags.as_dictionary();
        let texts = tags.values().as_string::<i32>();
        let mut pairs = Vec::new();
        for row in 0..count {
            let Some(key) = tags.key(row as usize) else { continue };
            if let Some(rules) = self.routes.get(texts.value(key)) {
                pairs.extend(rules.iter().map(|rule| (row, *rule)));
            }
        }
        Ok(pairs)
    }
}

fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("group alert rules: {error}"))
}
