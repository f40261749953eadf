import { ApiProperty, ApiPropertyOptional } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { IsInt, IsOptional, Matches, Max, Min } from 'class-validator';

/** How many items a page has by default, and at most. */
const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 500;

/** The largest total size of a page's items, in bytes; counts the parts that agents can make large. */
const PAGE_BYTES = 8 * 1024 * 1024;

/** Converts digits to a number; any other text is kept, so that the validation refuses it. */
const toWhole = ({ value }: { value: unknown }) =>
  typeof value === 'string' && /^\d{1,9}$/.test(value) ? Number(value) : value;

/** The query of every list: the number of items and the cursor. Lists with filters extend it. */
export class PageQuery {
  @ApiPropertyOptional({
    description: 'The maximum number of items.',
    type: 'integer',
    minimum: 1,
    maximum: MAX_LIMIT,
    default: DEFAULT_LIMIT,
    example: DEFAULT_LIMIT,
  })
  @Transform(toWhole)
  @IsInt()
  @Min(1)
  @Max(MAX_LIMIT)
  limit: number = DEFAULT_LIMIT;

  @ApiPropertyOptional({ description: 'The `next_cursor` of the previous page.', example: '1042' })
  @IsOptional()
  @Matches(/^[1-9]\d{0,14}$/, { message: 'cursor must be the next_cursor of a page' })
  cursor?: string;
}

/** The fields of every page besides its items. */
export class PageEnd {
  @ApiProperty({
    description: 'Send it as `cursor` to get the next page; null on the last page.',
    type: String,
    nullable: true,
    example: null,
  })
  next_cursor!: string | null;
}

/** One page of a list, newest first. */
export interface Page<T> {
  items: T[];
  /** The `cursor` of the next page; null on the last page. */
  next_cursor: string | null;
}

/** Returns the exclusive upper bound of the page's ids: `WHERE id < $1 ORDER BY id DESC LIMIT $2`, with `limit + 1` rows. */
export function olderThan(query: Pick<PageQuery, 'cursor'>): number {
  return query.cursor === undefined ? Number.MAX_SAFE_INTEGER : Number(query.cursor);
}

/**
 * Builds a page of rows that were selected newest first.
 * @param rows one more than `limit` if there is a next page
 * @param cursorOf the bound of the next page, from this page's last row: its id if the list is in the order of ids
 * @param viewOf converts a row to an item; the row itself by default
 */
export function pageOf<Row>(
  rows: readonly Row[],
  limit: number,
  cursorOf: (row: Row) => number | string,
): Page<Row>;
export function pageOf<Row, View>(
  rows: readonly Row[],
  limit: number,
  cursorOf: (row: Row) => number | string,
  viewOf: (row: Row) => View,
): Page<View>;
export function pageOf<Row>(
  rows: readonly Row[],
  limit: number,
  cursorOf: (row: Row) => number | string,
  viewOf: (row: Row) => unknown = (row) => row,
): Page<unknown> {
  const shown = rows.slice(0, limit);
  const last = shown.at(-1);
  return {
    items: shown.map(viewOf),
    next_cursor: rows.length > limit && last !== undefined ? String(cursorOf(last)) : null,
  };
}

/** Returns how many rows fit into a page by their size; at least one, at most `limit`. */
export function fitting(rows: readonly { bytes: number }[], limit: number): number {
  let bytes = 0;
  const cut = rows.findIndex((row, i) => {
    bytes += row.bytes;
    return i > 0 && bytes > PAGE_BYTES;
  });
  return cut === -1 ? limit : Math.min(cut, limit);
}
