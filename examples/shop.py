"""
Serve a little shop with FastAPI and async SQLAlchemy, and be its first customers.

It has never heard of OpenTelemetry: `make demo` runs it as it is.
"""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, HTTPException
from sqlalchemy import ForeignKey, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

app = FastAPI()
engine = create_async_engine("sqlite+aiosqlite://")
new_session = async_sessionmaker(engine, expire_on_commit=False)


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


@app.post("/shop")
async def open_shop() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with new_session.begin() as session:
        session.add_all(Product(name=f"tea no. {n}", price=n / 4) for n in range(1, 101))


@app.get("/prices")
async def prices() -> str:
    async with engine.connect() as connection:
        count = await connection.scalar(text("SELECT count(*) FROM product WHERE price > 9.99"))
        stream = await connection.stream_scalars(select(Product.price))
        return f"{count} products above 9.99, up to {max([price async for price in stream]):.2f}"


@app.post("/orders/{customer}")
async def place_order(customer: str, basket: dict[str, int]) -> float:
    async with new_session.begin() as session:
        products = (await session.scalars(select(Product).where(Product.name.in_(basket)))).all()
        session.add_all(
            OrderLine(customer=customer, product_id=product.id, quantity=basket[product.name]) for product in products
        )
    return sum(product.price * basket[product.name] for product in products)


@app.post("/products/{name}")
async def add_product(name: str, price: float) -> None:
    try:
        async with new_session.begin() as session:
            session.add(Product(name=name, price=price))
    except IntegrityError:
        raise HTTPException(409, f"{name} is in the shop already") from None


async def main() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        await client.post("/shop")
        print((await client.get("/prices")).json())
        order = await client.post("/orders/Ada", json={"tea no. 7": 2, "tea no. 25": 1, "tea no. 64": 2})
        print(f"Ada pays {order.json():.2f}")
        print((await client.post("/products/tea no. 7?price=1.75")).json()["detail"])
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
