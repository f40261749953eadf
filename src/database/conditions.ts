import type { SqlValue } from './statements';

/**
 * The conditions of a list, of those filters alone that were given. A filter that is always there, as `$1 IS NULL OR a = $1`,
 * has the database read the whole table: no index can serve both.
 */
export class Conditions {
  private readonly parts: string[] = [];
  private readonly bound: SqlValue[] = [];

  /** @param always what holds with any filter */
  constructor(...always: string[]) {
    this.parts.push(...always);
  }

  /** Adds a condition if its value is given. @param write writes it with the parameter's name */
  add(value: SqlValue | undefined, write: (parameter: string) => string): this {
    if (value !== undefined && value !== null) this.parts.push(write(this.bind(value)));
    return this;
  }

  /** Adds a condition whose values are bound, or that has none. */
  require(condition: string): this {
    this.parts.push(condition);
    return this;
  }

  /** Binds a value that stands elsewhere in the statement. @returns the parameter's name */
  bind(value: SqlValue): string {
    this.bound.push(value);
    return `$${this.bound.length}`;
  }

  /** `WHERE` with all of them; empty if there are none. */
  get where(): string {
    return this.parts.length === 0 ? '' : `WHERE ${this.parts.join(' AND ')}`;
  }

  get values(): readonly SqlValue[] {
    return this.bound;
  }
}
