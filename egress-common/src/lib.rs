#![no_std]
//! Shared layouts.
