//! The web page, built by build.rs and embedded.

use sandhaus_gateway::{Asset, CookieTransport, Dashboard};

/// Its files; none where the build left it out.
const ASSETS: &[Asset] = include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The page as the gateway serves it.
pub(crate) fn dashboard(cookie: CookieTransport) -> Dashboard {
    Dashboard { assets: ASSETS, cookie }
}

/// Whether this build has the page.
pub(crate) fn is_built() -> bool {
    !ASSETS.is_empty()
}
