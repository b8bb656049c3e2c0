use super::*;

fn known(generation: u64) -> Identity {
    Identity { sandbox_id: "one".to_owned(), generation, token: String::new() }
}

#[test]
fn greetings_are_told_apart() {
    assert_eq!(Identity::occasion(None, "one", 3).ok(), Some(Occasion::Boot));
    let known = known(3);
    let occasion = |id, generation| Identity::occasion(Some(&known), id, generation).ok();
    assert_eq!(occasion("one", 3), Some(Occasion::Repeat));
    assert_eq!(occasion("one", 4), Some(Occasion::Restored));
    assert_eq!(occasion("two", 1), Some(Occasion::Restored));
    assert_eq!(occasion("one", 2), None);
}

#[test]
fn entropy_is_whole_bytes() {
    assert_eq!(entropy("00fFa1"), Some(vec![0, 0xff, 0xa1]));
    for wrong in ["", "0", "0g", "+1", &"00".repeat(ENTROPY_BYTES_MAX + 1)] {
        assert_eq!(entropy(wrong), None, "{wrong}");
    }
    assert!(entropy(&"00".repeat(ENTROPY_BYTES_MAX)).is_some());
}
