"""
Run a little shop on async SQLAlchemy; it has never heard of OpenTelemetry.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import ForeignKey, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine("sqlite+aiosqlite://")
new_session = async_sessionmaker(engine, expire_on_commit=False)

BASKETS = {
    "Ada": {"tea no. 7": 2, "tea no. 25": 1},
    "Grace": {"tea no. 100": 3},
    "Katherine": {"tea no. 3": 1, "tea no. 64": 2, "tea no. 65": 2},
}


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[float]


class OrderLine(Base):
    __tablename__ = "order_line"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"))
    quantity: Mapped[int]


async def open_shop() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with new_session.begin() as session:
        session.add_all(Product(name=f"tea no. {n}", price=n / 4) for n in range(1, 101))


async def describe_prices() -> str:
    async with engine.connect() as connection:
        count = await connection.scalar(text("SELECT count(*) FROM product WHERE price > 9.99"))
        prices = await connection.stream_scalars(select(Product.price))
        return f"{count} products above 9.99, up to {max([price async for price in prices]):.2f}"


async def place_order(customer: str, basket: dict[str, int]) -> float:
    async with new_session.begin() as session:
        products = (await session.scalars(select(Product).where(Product.name.in_(basket)))).all()
        session.add_all(
            OrderLine(customer=customer, product_id=product.id, quantity=basket[product.name]) for product in products
        )
    return sum(product.price * basket[product.name] for product in products)


async def add_product(name: str, price: float) -> None:
    async with new_session.begin() as session:
        session.add(Product(name=name, price=price))


async def main() -> None:
    await open_shop()
    print(await describe_prices())

    # A task each, but one after the other: an in-memory database has one connection for all sessions.
    totals = [await asyncio.create_task(place_order(*order)) for order in BASKETS.items()]
    print(f"{len(totals)} orders, total {sum(totals):.2f}")
    try:
        await add_product("tea no. 7", 1.75)
    except IntegrityError:
        print("tea no. 7 is in the shop already")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
