//! Wire types of the compatible toolbox routes (docs: `daytona.md` sections 1.2 to 1.7).
