//! Starting the target, and ending it: the group that holds it together, the child that waits until
//! all probes are attached, the guardian that outlives us.

pub mod accounting;
pub mod existing;
pub mod group;
pub mod guardian;
pub mod held;
