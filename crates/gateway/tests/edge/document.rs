//! The OpenAPI document, as a list of what there is. The whole of it is in `docs/openapi.json`.

#[test]
fn routes_and_their_answers() {
    let document: serde_json::Value = serde_json::from_str(&sandhaus_gateway::openapi()).unwrap();
    let mut list = String::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let statuses: Vec<&str> =
                operation["responses"].as_object().unwrap().keys().map(String::as_str).collect();
            let open = if operation["security"] == serde_json::json!([{}]) { " open" } else { "" };
            list.push_str(&format!("{method:<7} {path}{open}: {}\n", statuses.join(" ")));
        }
    }
    insta::assert_snapshot!("routes", list);
}
