//! Stands in for Windows' `wsl.exe` in tests under Wine: what it was called with goes to the test that listens at the
//! address in `SANDHAUS_STAND_IN`, and what comes back is what it writes and ends with.
//!
//! Both directions are lengths and bytes: a count of arguments and each of them; an exit status and the two streams.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    process::ExitCode,
};

/// Where the test listens.
const ADDRESS: &str = "SANDHAUS_STAND_IN";

fn main() -> io::Result<ExitCode> {
    let address = std::env::var(ADDRESS).map_err(io::Error::other)?;
    let mut test = TcpStream::connect(address)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    write_number(&mut test, arguments.len())?;
    for argument in &arguments {
        write_number(&mut test, argument.len())?;
        test.write_all(argument.as_bytes())?;
    }
    let mut status = [0];
    test.read_exact(&mut status)?;
    let (out, err) = (read_bytes(&mut test)?, read_bytes(&mut test)?);
    io::stdout().write_all(&out)?;
    io::stderr().write_all(&err)?;
    Ok(ExitCode::from(status[0]))
}

fn write_number(stream: &mut impl Write, number: usize) -> io::Result<()> {
    stream.write_all(&u32::try_from(number).map_err(io::Error::other)?.to_le_bytes())
}

fn read_bytes(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
