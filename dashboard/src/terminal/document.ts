/**
 * Lets the terminal's renderer do without inline styles.
 *
 * The renderer puts rules into `style` elements and colours into `style` attributes. The page's policy forbids both, and
 * rightly: they are how injected markup restyles a page. Neither is forbidden to scripts that speak to the style objects
 * directly, so that is what elements do once this is in place: a `style` element is a stand-in whose text becomes a
 * constructed sheet, and the `style` attribute of a `span` is set through the element's own style.
 */

// eslint-disable-next-line @typescript-eslint/no-deprecated -- only one of its overloads is
const original = document.createElement.bind(document);

/** Takes the place of a `style` element: text that is put into it becomes a sheet of the page. */
function standIn(): HTMLElement {
  const element = original("span");
  element.hidden = true;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  Object.defineProperty(element, "textContent", { set: (text: string) => sheet.replaceSync(text) });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

function setAttribute(this: HTMLElement, name: string, value: string): void {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}

function createElement(name: string, options?: ElementCreationOptions): HTMLElement {
  if (name === "style") return standIn();
  const element = original(name, options);
  if (name === "span") element.setAttribute = setAttribute;
  return element;
}

/** Puts it in place, for good: the renderer makes elements whenever it draws, always through the page's document. */
export function withoutInlineStyles(): void {
  Object.defineProperty(document, "createElement", { value: createElement, configurable: true });
}
