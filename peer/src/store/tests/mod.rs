//! Tests of the store as a whole.

// Vectors of one range are what `have_ranges` and `missing` return.
#![allow(clippy::single_range_in_vec_init)]

mod crash;
mod damage;
mod disk;
mod entries;
mod fixture;
mod kill;
mod layers;
mod mounts;
mod points;
mod quota;
mod sharing;
