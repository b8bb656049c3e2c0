//! Capturing a machine: its disk, its memory, or both of one moment.
