//! The program's command line: its arguments, and the process as a whole.

mod arguments;
mod process;
