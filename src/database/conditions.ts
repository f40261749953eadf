import type { SqlValue } from './statements';

/**
 * Builds the conditions of a list from the filters that were given. With a constant filter such as `$1 IS NULL OR a =
 * $1` the database would read the whole table, because no index serves both cases.
 */
export class Conditions {
  private readonly parts: string[] = [];
  private readonly bound: SqlValue[] = [];

  /** @param always conditions without a filter */
  constructor(...always: string[]) {
    this.parts.push(...always);
  }

  /** Adds a condition if its value is given. @param write returns its text with the parameter's name */
  add(value: SqlValue | undefined, write: (parameter: string) => string): this {
    if (value !== undefined && value !== null) this.parts.push(write(this.bind(value)));
    return this;
  }

  /** Adds a condition whose values are bound already, or that has none. */
  require(condition: string): this {
    this.parts.push(condition);
    return this;
  }

  /** Binds a value for another part of the statement. @returns the parameter's name */
  bind(value: SqlValue): string {
    this.bound.push(value);
    return `$${this.bound.length}`;
  }

  /** `WHERE` with all conditions; empty if there are none. */
  get where(): string {
    return this.parts.length === 0 ? '' : `WHERE ${this.parts.join(' AND ')}`;
  }

  get values(): readonly SqlValue[] {
    return this.bound;
  }
}
