//! stub
use std::path::Path;
use super::build::{Made, Work};
use crate::{Error, Result};
pub(crate) fn make(_work: &mut Work<'_>, _disk: &Path) -> Result<Made> { Err(Error::Source("no".to_owned())) }
