/**
 * A document for the terminal's renderer that needs no inline style.
 *
 * The renderer puts rules into `<style>` elements and colours into `style` attributes. The page's policy forbids both,
 * and rightly: they are how injected markup restyles a page. Neither is forbidden to scripts that speak to the style
 * objects directly, so that is what this document does in the renderer's place: a `style` element is a stand-in whose
 * text becomes a constructed sheet, and a `style` attribute is set through the element's own style.
 */

/** How the page's document makes elements by itself. */
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

/** The page's document, but for how elements are made. */
export const terminalDocument: Document = new Proxy(document, {
  get(target, name) {
    if (name === "createElement") return createElement;
    const value: unknown = Reflect.get(target, name, target);
    return typeof value === "function" ? (value.bind(target) as unknown) : value;
  },
});

/**
 * Runs `open`, which opens a terminal. One part of the renderer reaches past the document it was given; while it is set
 * up, the page's own one makes elements the same way.
 */
export function openingTerminal(open: () => void): void {
  Object.defineProperty(document, "createElement", { value: createElement, configurable: true });
  try {
    open();
  } finally {
    Reflect.deleteProperty(document, "createElement");
  }
}
