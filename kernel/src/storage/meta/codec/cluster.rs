//! The frozen form of the nodes that there are, and of who of them has which partition.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Epoch, PartitionId, Slot};
use crate::storage::meta::{Assignment, NodeMeta};

#[derive(Serialize, Deserialize)]
pub(super) struct AssignmentRecord {
    partition: u16,
    node: String,
    epoch: u64,
    slots: (u16, u16),
}

#[derive(Serialize, Deserialize)]
pub(super) struct NodeRecord {
    id: String,
    instance: u128,
    roles: Vec<String>,
}

impl AssignmentRecord {
    pub(super) fn new(partition: PartitionId, from: &Assignment) -> Self {
        AssignmentRecord {
            partition: partition.0,
            node: from.node.clone(),
            epoch: from.epoch.0,
            slots: (from.slots.0.0, from.slots.1.0),
        }
    }

    pub(super) fn split(self) -> (PartitionId, Assignment) {
        let assignment = Assignment {
            node: self.node,
            epoch: Epoch(self.epoch),
            slots: (Slot(self.slots.0), Slot(self.slots.1)),
        };
        (PartitionId(self.partition), assignment)
    }
}

impl From<&NodeMeta> for NodeRecord {
    fn from(from: &NodeMeta) -> Self {
        NodeRecord {
            id: from.id.clone(),
            instance: from.instance.as_u128(),
            roles: from.roles.clone(),
        }
    }
}

impl From<NodeRecord> for NodeMeta {
    fn from(from: NodeRecord) -> Self {
        NodeMeta { id: from.id, instance: Uuid::from_u128(from.instance), roles: from.roles }
    }
}
