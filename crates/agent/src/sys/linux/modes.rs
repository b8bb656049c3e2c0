//! Settings of a terminal as clients of SSH send them (RFC 4254, section 8).

use std::{io, os::fd::AsFd};

use rustix::termios::{InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios};

/// A character that is none.
const DISABLED: u32 = 255;

/// Gives a terminal these settings; what is not known is left out.
pub(crate) fn set_terminal_modes(terminal: impl AsFd, modes: &[(u8, u32)]) -> io::Result<()> {
    if modes.is_empty() {
        return Ok(());
    }
    let terminal = terminal.as_fd();
    let mut termios = rustix::termios::tcgetattr(terminal)?;
    for (number, value) in modes {
        set(&mut termios, *number, *value);
    }
    Ok(rustix::termios::tcsetattr(terminal, OptionalActions::Now, &termios)?)
}

fn set(termios: &mut Termios, number: u8, value: u32) {
    if let Some(index) = special(number) {
        // No character is 0 here, which is what a terminal takes for none.
        termios.special_codes[index] = if value == DISABLED { 0 } else { u8::try_from(value).unwrap_or(0) };
        return;
    }
    let on = value != 0;
    if let Some(mode) = input(number) {
        termios.input_modes.set(mode, on);
    } else if let Some(mode) = local(number) {
        termios.local_modes.set(mode, on);
    } else if let Some(mode) = output(number) {
        termios.output_modes.set(mode, on);
    }
}

fn special(number: u8) -> Option<SpecialCodeIndex> {
    Some(match number {
        1 => SpecialCodeIndex::VINTR,
        2 => SpecialCodeIndex::VQUIT,
        3 => SpecialCodeIndex::VERASE,
        4 => SpecialCodeIndex::VKILL,
        5 => SpecialCodeIndex::VEOF,
        6 => SpecialCodeIndex::VEOL,
        7 => SpecialCodeIndex::VEOL2,
        8 => SpecialCodeIndex::VSTART,
        9 => SpecialCodeIndex::VSTOP,
        10 => SpecialCodeIndex::VSUSP,
        12 => SpecialCodeIndex::VREPRINT,
        13 => SpecialCodeIndex::VWERASE,
        14 => SpecialCodeIndex::VLNEXT,
        18 => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input(number: u8) -> Option<InputModes> {
    Some(match number {
        30 => InputModes::IGNPAR,
        31 => InputModes::PARMRK,
        32 => InputModes::INPCK,
        33 => InputModes::ISTRIP,
        34 => InputModes::INLCR,
        35 => InputModes::IGNCR,
        36 => InputModes::ICRNL,
        38 => InputModes::IXON,
        39 => InputModes::IXANY,
        40 => InputModes::IXOFF,
        41 => InputModes::IMAXBEL,
        42 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local(number: u8) -> Option<LocalModes> {
    Some(match number {
        50 => LocalModes::ISIG,
        51 => LocalModes::ICANON,
        53 => LocalModes::ECHO,
        54 => LocalModes::ECHOE,
        55 => LocalModes::ECHOK,
        56 => LocalModes::ECHONL,
        57 => LocalModes::NOFLSH,
        58 => LocalModes::TOSTOP,
        59 => LocalModes::IEXTEN,
        60 => LocalModes::ECHOCTL,
        61 => LocalModes::ECHOKE,
        _ => return None,
    })
}

fn output(number: u8) -> Option<OutputModes> {
    Some(match number {
        70 => OutputModes::OPOST,
        72 => OutputModes::ONLCR,
        73 => OutputModes::OCRNL,
        74 => OutputModes::ONOCR,
        75 => OutputModes::ONLRET,
        _ => return None,
    })
}
