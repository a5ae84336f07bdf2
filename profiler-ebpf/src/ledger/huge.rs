//! `huge_memory:mm_khugepaged_scan_pmd` (tp_btf): khugepaged may be about to make a huge page.
//!
//! ```text
//! TP_PROTO(struct mm_struct *mm, struct folio *folio, …)    a page before 6.16
//! ```
//!
//! It takes 2 MiB out of the page tables for a while and brings pages that nobody touched, so they
//! are copied before. The tracepoint fires between its look at the range and the change
//! (`hpage_collapse_scan_pmd`, mm/khugepaged.c). The address is not told: an anonymous page knows its
//! own (`index`), unless `mremap` has moved it.

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{
    change::{before_arrival, space_of},
    kernel::read,
    maps::folio_index,
};

#[btf_tracepoint]
pub fn ledger_huge(ctx: BtfTracePointContext) -> i32 {
    let Some(space) = space_of(ctx.arg::<*const c_void>(0) as u64) else {
        return 0;
    };
    let folio = ctx.arg::<*const c_void>(1);
    // The verifier wants this said of a pointer, before it becomes a number.
    if folio.is_null() {
        return 0;
    }
    let folio = folio as u64;
    let Some(index) = read(folio.wrapping_add(folio_index())) else {
        return 0;
    };
    if index >> 51 == 0 {
        before_arrival(space, index << 12, (index << 12) + 1);
    }
    0
}
