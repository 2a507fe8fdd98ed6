//! Who is in the cluster and who owns which slots: one node that owns them all, behind the
//! two traits that more nodes will implement.
//!
//! Nothing above this file knows how many nodes there are: ingest asks a [`Router`] for the
//! owner of rows, the query engine a [`Membership`] for workers. Growth replaces
//! [`SingleNode`], and nothing else.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kymo_config::Settings;
use kymo_kernel::ids::{Epoch, PartitionId, SLOTS, Slot};
use kymo_kernel::{Code, Error, Result};

/// Name of a node, unique in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub Arc<str>);

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes connections.
    Gateway,
    /// Owns partitions: takes writes and keeps recent rows.
    Ingest,
    /// Runs queries.
    Query,
    /// Merges segments and collects garbage.
    Compact,
}

impl Role {
    const ALL: [Role; 4] = [Role::Gateway, Role::Ingest, Role::Query, Role::Compact];

    /// The word used in settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Ingest => "ingest",
            Role::Query => "query",
            Role::Compact => "compact",
        }
    }

    /// Reads the setting `node.roles`.
    ///
    /// # Errors
    /// `invalid_settings`, naming the first word that is no role.
    pub fn parse_all(words: &[String]) -> Result<Vec<Role>> {
        if words.iter().any(|word| word == "all") {
            return Ok(Role::ALL.to_vec());
        }
        words
            .iter()
            .map(|word| {
                Role::ALL.into_iter().find(|role| role.as_str() == word).ok_or_else(|| {
                    Error::new(Code::Settings, format!("node.roles: unknown role {word:?}"))
                        .with_hint("use all, or any of gateway, ingest, query and compact")
                })
            })
            .collect()
    }
}

/// A node as its peers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub id: NodeId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where its peers reach it; empty for the only node.
    pub address: String,
}

/// The owner of a range of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The partition that the slots belong to.
    pub partition: PartitionId,
    /// The node that owns the partition.
    pub node: NodeId,
    /// The ownership under which it does.
    pub epoch: Epoch,
}

/// Who is there.
pub trait Membership: Send + Sync + 'static {
    /// The nodes that are believed to be alive, this one included.
    fn nodes(&self) -> Arc<[NodeInfo]>;
    /// This node.
    fn here(&self) -> NodeInfo;
}

/// Who owns what.
pub trait Router: Send + Sync + 'static {
    /// The owner of a slot.
    fn owner(&self, slot: Slot) -> Owner;
    /// All slots by owner, in order and without a gap. One element means that rows need no
    /// hashing to be routed.
    fn ranges(&self) -> Arc<[(RangeInclusive<u16>, Owner)]>;
}

/// The cluster of one: this process owns every slot through partition 0.
#[derive(Debug, Clone)]
pub struct SingleNode {
    nodes: Arc<[NodeInfo]>,
    ranges: Arc<[(RangeInclusive<u16>, Owner)]>,
    owner: Owner,
}

impl SingleNode {
    /// The node of these settings, owning under `epoch`.
    ///
    /// # Errors
    /// `invalid_settings` for a role that does not exist or more than one partition.
    pub fn new(settings: &Settings, epoch: Epoch) -> Result<Self> {
        if settings.cluster.partitions != 1 {
            return Err(Error::new(
                Code::Settings,
                format!(
                    "cluster.partitions is {}, and one process serves one partition",
                    settings.cluster.partitions
                ),
            )
            .with_hint("set cluster.partitions = 1"));
        }
        let id = NodeId(settings.node.id.as_str().into());
        let roles = Role::parse_all(&settings.node.roles)?;
        let owner = Owner { partition: PartitionId::ONLY, node: id.clone(), epoch };
        Ok(SingleNode {
            nodes: [NodeInfo { id, roles, address: String::new() }].into(),
            ranges: [(0..=SLOTS - 1, owner.clone())].into(),
            owner,
        })
    }
}

impl Membership for SingleNode {
    fn nodes(&self) -> Arc<[NodeInfo]> {
        self.nodes.clone()
    }

    fn here(&self) -> NodeInfo {
        self.nodes[0].clone()
    }
}

impl Router for SingleNode {
    fn owner(&self, _slot: Slot) -> Owner {
        self.owner.clone()
    }

    fn ranges(&self) -> Arc<[(RangeInclusive<u16>, Owner)]> {
        self.ranges.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_owns_every_slot() {
        let node = SingleNode::new(&Settings::default(), Epoch(3)).unwrap();
        let ranges = node.ranges();
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].0, 0..=1023);
        assert_eq!(node.owner(Slot(17)), ranges[0].1);
        assert_eq!(node.owner(Slot(17)).epoch, Epoch(3));
        assert_eq!(node.here().roles.len(), 4);
        assert_eq!(node.nodes().len(), 1);
    }

    #[test]
    fn settings_that_need_more_nodes_are_refused() {
        let mut settings = Settings::default();
        settings.cluster.partitions = 4;
        assert_eq!(SingleNode::new(&settings, Epoch(1)).unwrap_err().code(), Code::Settings);
        settings.cluster.partitions = 1;
        settings.node.roles = vec!["query".to_owned(), "cook".to_owned()];
        let error = SingleNode::new(&settings, Epoch(1)).unwrap_err();
        assert!(error.message().contains("\"cook\""), "{error}");
    }
}
