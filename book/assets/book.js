// Repairs of the theme's markup for assistive technology; the tests run axe.
document.addEventListener("DOMContentLoaded", () => {
  const all = (query, repair) =>
    document.querySelectorAll(query).forEach(repair);
  all(".search-button-field, details > summary[aria-label]", (element) =>
    element.removeAttribute("aria-label"));
  all(".theme-switch-button .theme-switch", (element) => {
    element.removeAttribute("title");
    element.setAttribute("aria-hidden", "true");
  });
  all(".bd-sidebar-primary", (element) => {
    element.setAttribute("role", "region");
    element.setAttribute("aria-label", "Book navigation");
  });
  all(".bd-sidebar-primary summary", (element) =>
    element.setAttribute("aria-label", "Pages below this one"));
  all(".citation-list[role=list], [role=doc-biblioentry]", (element) =>
    element.removeAttribute("role"));
  // a formula wider than its line, on a narrow screen
  const wide = () => all("span.math", (element) => {
    element.classList.remove("wide");
    const line = element.closest("p, li, dd, td, figcaption") ?? document.body;
    element.classList.toggle("wide", element.offsetWidth > line.clientWidth);
  });
  wide();
  addEventListener("resize", wide);
  // what scrolls must be reachable with the keyboard, what does not, need not;
  // which of the two it is can change when the fonts arrive
  const boxes = "div.math, .cell_output pre, :has(> svg.ds-figure), " +
    ".pst-scrollable-table-container";
  const reach = () => all(boxes, (element) => {
    if (element.scrollWidth > element.clientWidth)
      element.setAttribute("tabindex", "0");
    else element.removeAttribute("tabindex");
  });
  reach();
  document.fonts.ready.then(reach);
  addEventListener("load", reach);
  addEventListener("resize", reach);
});
