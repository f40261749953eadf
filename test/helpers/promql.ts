import { parser } from '@prometheus-io/lezer-promql';

/** What an expression asks Prometheus for. */
export interface PromqlParts {
  /** Each selector: the series' name and the labels that it matches. */
  readonly selectors: readonly { name: string; labels: readonly string[] }[];
  /** Labels that something is grouped or joined by. */
  readonly grouping: readonly string[];
}

/**
 * The parts of an expression of PromQL, by Prometheus' own grammar.
 * @throws Error it is none
 */
export function promqlParts(expression: string): PromqlParts {
  const selectors: { name: string; labels: string[] }[] = [];
  const grouping: string[] = [];
  let inGrouping = false;
  parser.parse(expression).iterate({
    enter(node) {
      const text = expression.slice(node.from, node.to);
      if (node.type.isError)
        throw new Error(`not PromQL at "${expression.slice(Math.max(0, node.from - 20), node.to + 20)}"`);
      if (node.name === 'VectorSelector') selectors.push({ name: '', labels: [] });
      const selector = selectors.at(-1);
      if (node.name === 'GroupingLabels') inGrouping = true;
      else if (node.name === 'Identifier' && selector) selector.name = text;
      else if (node.name === 'LabelName' && inGrouping) grouping.push(text);
      else if (node.name === 'LabelName' && selector) selector.labels.push(text);
    },
    leave(node) {
      if (node.name === 'GroupingLabels') inGrouping = false;
    },
  });
  return { selectors, grouping };
}
