//! What language servers answer, in the shapes of the contract. Servers say the same thing in several ways; what cannot be
//! read is left out, so that one strange item does not hide the others.

use sandhaus_protocol::lsp::{
    CompletionItem, CompletionList, LspLocation, LspMarkup, LspPosition, LspRange, LspSymbol,
};
use serde_json::Value;

/// Deepest symbol within symbols that is listed.
const DEPTH_MAX: usize = 64;

/// A list of completions, or a list with a note whether it is complete, or nothing.
pub(super) fn completions(answer: &Value) -> CompletionList {
    let items = answer.as_array().or_else(|| answer["items"].as_array());
    CompletionList {
        is_incomplete: answer["isIncomplete"].as_bool().unwrap_or(false),
        items: items.into_iter().flatten().filter_map(completion).collect(),
    }
}

fn completion(item: &Value) -> Option<CompletionItem> {
    let text = |name: &str| item[name].as_str().map(str::to_owned);
    let edit = || item["textEdit"]["newText"].as_str().map(str::to_owned);
    Some(CompletionItem {
        label: text("label")?,
        kind: number(&item["kind"]),
        detail: text("detail"),
        documentation: documentation(&item["documentation"]),
        insert_text: text("insertText").or_else(edit),
        filter_text: text("filterText"),
        sort_text: text("sortText"),
    })
}

/// A plain text, or one that says what it is.
fn documentation(value: &Value) -> Option<LspMarkup> {
    if let Some(text) = value.as_str() {
        return Some(LspMarkup { kind: "plaintext".to_owned(), value: text.to_owned() });
    }
    let kind = value["kind"].as_str().unwrap_or("plaintext").to_owned();
    Some(LspMarkup { kind, value: value["value"].as_str()?.to_owned() })
}

/// A flat list of symbols, or symbols of `document` within each other, which become one list in their order. `name_of` says
/// how the client calls a document.
pub(super) fn symbols(answer: &Value, document: &str, name_of: impl Fn(&str) -> String) -> Vec<LspSymbol> {
    let mut symbols = Vec::new();
    let Some(roots) = answer.as_array() else { return symbols };
    let mut waiting: Vec<(&Value, usize)> = roots.iter().rev().map(|symbol| (symbol, 0)).collect();
    while let Some((symbol, depth)) = waiting.pop() {
        if let Some(found) = symbol_of(symbol, document, &name_of) {
            symbols.push(found);
        }
        if let Some(children) = symbol["children"].as_array().filter(|_| depth < DEPTH_MAX) {
            waiting.extend(children.iter().rev().map(|child| (child, depth + 1)));
        }
    }
    symbols
}

fn symbol_of(symbol: &Value, document: &str, name_of: impl Fn(&str) -> String) -> Option<LspSymbol> {
    let location = &symbol["location"];
    let (uri, place) = match location["uri"].as_str() {
        Some(uri) => (name_of(uri), &location["range"]),
        None => (document.to_owned(), &symbol["range"]),
    };
    Some(LspSymbol {
        name: symbol["name"].as_str()?.to_owned(),
        kind: number(&symbol["kind"])?,
        // Symbols of a whole project may come without a place.
        location: LspLocation { uri, range: range(place).unwrap_or_default() },
    })
}

fn range(value: &Value) -> Option<LspRange> {
    let position = |value: &Value| {
        Some(LspPosition { line: number(&value["line"])?, character: number(&value["character"])? })
    };
    Some(LspRange { start: position(&value["start"])?, end: position(&value["end"])? })
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn completions_in_all_their_forms() {
        assert_eq!(completions(&Value::Null), CompletionList::default());
        let list = completions(&json!([
            { "label": "a", "kind": 3, "documentation": "plain" },
            { "label": "b", "documentation": { "kind": "markdown", "value": "*b*" }, "textEdit": { "newText": "bb" } },
            { "label": "c", "documentation": [], "kind": -1, "insertText": "cc", "textEdit": { "newText": "no" } },
            { "no": "label" }, 7,
        ]));
        assert!(!list.is_incomplete);
        let found: Vec<_> = list
            .items
            .iter()
            .map(|item| {
                let documentation =
                    item.documentation.as_ref().map(|text| (text.kind.as_str(), text.value.as_str()));
                (item.label.as_str(), item.kind, documentation, item.insert_text.as_deref())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("a", Some(3), Some(("plaintext", "plain")), None),
                ("b", None, Some(("markdown", "*b*")), Some("bb")),
                ("c", None, None, Some("cc")),
            ]
        );
        assert!(completions(&json!({ "isIncomplete": true, "items": [] })).is_incomplete);
    }

    #[test]
    fn symbols_become_one_list() {
        let place = json!({ "start": { "line": 1, "character": 2 }, "end": { "line": 3, "character": 4 } });
        let answer = json!([
            { "name": "A", "kind": 5, "range": place, "children": [
                { "name": "B", "kind": 6, "range": place, "children": [{ "name": "C", "kind": 13, "range": place }] },
                { "name": "D", "kind": 6, "range": place },
            ] },
            { "name": "E", "kind": 12, "location": { "uri": "file:///x", "range": place } },
            { "name": "F", "kind": 12, "location": { "uri": "file:///y" } },
            { "kind": 1 }, null,
        ]);
        let list = symbols(&answer, "file://doc", |uri| uri.replace("/x", "mapped"));
        let found: Vec<_> = list
            .iter()
            .map(|symbol| (symbol.name.as_str(), symbol.kind, symbol.location.uri.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("A", 5, "file://doc"),
                ("B", 6, "file://doc"),
                ("C", 13, "file://doc"),
                ("D", 6, "file://doc"),
                ("E", 12, "file://mapped"),
                ("F", 12, "file:///y"),
            ]
        );
        assert_eq!(list[0].location.range.end, LspPosition { line: 3, character: 4 });
        assert_eq!(list[5].location.range, LspRange::default());
        assert!(symbols(&Value::Null, "d", str::to_owned).is_empty());
    }

    #[test]
    fn depth_is_bounded() {
        let mut symbol = json!({ "name": "leaf", "kind": 1 });
        for _ in 0..DEPTH_MAX * 2 {
            symbol = json!({ "name": "n", "kind": 1, "children": [symbol] });
        }
        assert_eq!(symbols(&json!([symbol]), "d", str::to_owned).len(), DEPTH_MAX + 1);
    }
}
