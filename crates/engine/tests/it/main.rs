//! The engine from outside: the contract, crashes, corruption, space.

mod contract;
mod faults;
mod space;
