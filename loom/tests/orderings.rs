//! Runs each test in every order.

use sixhop_loom::{rings, table};

#[test]
fn a_ring_hands_over_each_entry_once_and_in_order() {
    rings::hand_over(2, 3, 1);
}

#[test]
fn a_ring_of_one_entry_does_too() {
    rings::hand_over(1, 2, 1);
}

#[test]
fn batches_are_handed_over_whole() {
    rings::hand_over(2, 4, 2);
}

#[test]
fn frames_go_to_the_kernel_and_back_with_what_is_in_them() {
    rings::send_and_complete(1, 2);
    rings::send_and_complete(2, 3);
}

#[test]
fn a_sleeping_kernel_is_woken_by_who_looks_again() {
    rings::wake(None);
}

/// There is no barrier between the tail and the flag on either side of the kernel's interface, so a
/// single check may see neither. The worker therefore checks as long as something is pending.
#[test]
#[should_panic(expected = "deadlock")]
fn one_look_may_miss_the_flag() {
    rings::wake(Some(1));
}

#[test]
fn no_identifier_is_found_for_a_step_it_was_not_entered_for() {
    table::no_identifier_for_a_step_it_was_not_entered_for();
}

#[test]
fn an_identifier_that_is_entered_stays_while_others_come() {
    table::what_is_entered_stays();
}

#[test]
fn no_identifier_is_live_ahead_of_its_step() {
    table::none_is_live_ahead_of_its_step();
}
