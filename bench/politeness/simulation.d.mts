/** What is read of the simulation in tests. */
export interface Scenario {
  readonly capacityAt?: (at: number) => number;
  readonly maxRate?: number;
  readonly needs?: { readonly good?: number; readonly overload?: number; readonly perMinute?: number };
}
export interface Figures {
  readonly runs: readonly { readonly rates: readonly number[]; readonly sent: readonly number[] }[];
}
export type Rule = new (scenario: Scenario) => object;

export const PacedRule: Rule;
export const WindowRule: Rule;
export const SCENARIOS: Readonly<Record<string, Scenario>>;
export const OTHERS: Readonly<Record<string, Scenario>>;
export function measure(scenario: Scenario, rule?: Rule, seeds?: number): Figures;
export function missedBy(figures: Figures, needs?: Scenario['needs']): string[];
