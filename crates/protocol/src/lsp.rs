//! Wire types of the compatible language server routes (docs: `daytona.md` section 1.10).

use serde::{Deserialize, Serialize};

/// `POST /lsp/start` and `POST /lsp/stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspServerRequest {
    /// `python`, `typescript` or `javascript`.
    pub language_id: String,
    /// The project's directory.
    pub path_to_project: String,
}

/// `POST /lsp/did-open` and `POST /lsp/did-close`, and the query of `GET /lsp/document-symbols`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspDocumentRequest {
    /// `python`, `typescript` or `javascript`.
    pub language_id: String,
    /// The project's directory.
    pub path_to_project: String,
    /// `file://` and the path of the document.
    pub uri: String,
}

/// Query of `GET /lsp/workspacesymbols`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspWorkspaceQuery {
    /// `python`, `typescript` or `javascript`.
    pub language_id: String,
    /// The project's directory.
    pub path_to_project: String,
    /// What the names hold.
    pub query: String,
}

/// A place in a document: lines and UTF-16 units from zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspPosition {
    /// The line.
    pub line: u32,
    /// The place in it.
    pub character: u32,
}

/// From one place up to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspRange {
    /// Its first place.
    pub start: LspPosition,
    /// The place behind it.
    pub end: LspPosition,
}

/// A range of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspLocation {
    /// The document.
    pub uri: String,
    /// Where in it.
    pub range: LspRange,
}

/// Something that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspSymbol {
    /// The name.
    pub name: String,
    /// What it is, by the protocol's numbers.
    pub kind: u32,
    /// Where it is.
    pub location: LspLocation,
}

/// Why completions are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspCompletionContext {
    /// By the protocol's numbers.
    pub trigger_kind: u32,
    /// The character that was typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_character: Option<String>,
}

/// `POST /lsp/completions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspCompletionParams {
    /// `python`, `typescript` or `javascript`.
    pub language_id: String,
    /// The project's directory.
    pub path_to_project: String,
    /// `file://` and the path of the document.
    pub uri: String,
    /// Where.
    pub position: LspPosition,
    /// Why.
    #[serde(default)]
    pub context: Option<LspCompletionContext>,
}

/// A text of a language server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LspMarkup {
    /// `plaintext` or `markdown`.
    pub kind: String,
    /// The text.
    pub value: String,
}

/// Something that could be written at a place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionItem {
    /// As it is shown.
    pub label: String,
    /// What it is, by the protocol's numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<u32>,
    /// More about it, in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// More about it, at length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documentation: Option<LspMarkup>,
    /// What is written, if not the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insert_text: Option<String>,
    /// What is compared with what was typed, if not the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_text: Option<String>,
    /// What decides the order, if not the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort_text: Option<String>,
}

/// Answer of `POST /lsp/completions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionList {
    /// Typing on may bring others.
    pub is_incomplete: bool,
    /// All there are.
    pub items: Vec<CompletionItem>,
}
