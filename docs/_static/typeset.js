// Replaces every formula of the page by its typeset form. Scripts with `defer` run in order.
renderMathInElement(document.body, {
  delimiters: [
    { left: "\\(", right: "\\)", display: false },
    { left: "\\[", right: "\\]", display: true },
  ],
  macros: { "\\KL": "\\operatorname{KL}", "\\E": "\\mathbb{E}" },
  throwOnError: false,
});
